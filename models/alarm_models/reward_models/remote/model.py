"""Kind `remote`: a model behind another server's HTTP API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from alarm_models.errors import CheckpointError, SampleError, UnreachableError
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.base import HostModel, Outcome, gather_limited
from alarm_models.reward_models.registry import host_kind
from alarm_models.reward_models.remote.apis import api_of
from alarm_models.reward_models.remote.connections import excerpt, without_password
from alarm_models.reward_models.remote.http import RemoteClient, RequestFailed
from alarm_models.types import Sample, Score

__all__ = ["RemoteModel"]

#: Two samples whose logits are unlikely to be both within [0, 1].
_PROBES = (Sample("Is it warm?", "It is."), Sample("Is it cold?", "No! It is not, not at all."))

#: Errors from a response of another format.
_UNEXPECTED_SHAPE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip

#: Statuses of a server, or a proxy, that is busy, starting or unavailable.
_UNAVAILABLE = frozenset({429, 502, 503, 504})

#: Keys of the spec that do not affect scores.
_WITHOUT_EFFECT = frozenset(
    {
        "url", "api_key", "timeout_s", "max_retries", "max_concurrent", "batch_size",
        "max_answer_bytes",
    }
)  # fmt: skip


@host_kind(RemoteSpec)
class RemoteModel(HostModel):
    """Requests scores from another server; a failure there fails only its samples.

    A rejected request is split in half until the rejected sample is found.
    """

    is_elsewhere = True

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        super().__init__("", None if spec.api == "alarm" else spec.view_rules)
        self._spec = spec
        self._api = api_of(spec, fields)
        self._client: RemoteClient | None = None
        self._identity = ""
        self._patterns = sorted((name, field.pattern) for name, field in fields.items())

    @property
    def fingerprint(self) -> str:
        """A digest of the request, the server's address, and the model it reported when opened."""
        url = urlsplit(self._spec.url)
        request = self._spec.constants(_WITHOUT_EFFECT)
        address = f"{url.scheme}://{url.hostname}:{url.port}{url.path}"
        parts = f"{request}|{self._patterns}|{address}|{self._identity}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    async def open(self) -> None:
        """Request which model the server serves, and check that its scores are raw.

        Raises `CheckpointError`; `UnreachableError` if the server is temporarily unavailable.
        """
        self._client = RemoteClient(self._spec)
        try:
            await self._identify(self._client)
        except BaseException:
            await self.close()
            raise

    async def _identify(self, client: RemoteClient) -> None:
        try:
            if self._spec.api == "alarm":
                # A server that is still loading has no fingerprint until it is ready.
                await client.request("POST", self._api.path, self._api.body(_probes(self._spec)))
            self._identity = await self._server_identity(client)
            await self._require_raw(client)
        except RequestFailed as failed:
            is_away = failed.status is None or failed.status in _UNAVAILABLE
            raise (UnreachableError if is_away else CheckpointError)(str(failed)) from failed
        except _UNEXPECTED_SHAPE as error:
            raise CheckpointError(
                f"{self._url} does not respond as api `{self._spec.api}`: {excerpt(repr(error))}"
            ) from error

    async def _server_identity(self, client: RemoteClient) -> str:
        try:
            return self._api.identity(await client.request("GET", self._api.identity_path))
        except RequestFailed as failed:
            if failed.status in (404, 405):
                return ""  # not every server has the route
            raise

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples with concurrent requests; never raises for errors of the server."""
        return await self._score_shown(samples, self._score_parts)

    async def _score_parts(self, samples: Sequence[Sample]) -> list[Outcome]:
        size = self._api.max_samples
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        outcomes = await gather_limited(self._scored, parts, self._spec.max_concurrent)
        return [outcome for part in outcomes for outcome in part]

    async def _scored(self, samples: Sequence[Sample]) -> list[Outcome]:
        try:
            return await self._request_scores(samples)
        except SampleError as error:
            problem = error
        except RequestFailed as failed:
            problem = SampleError("model_failed", str(failed))
            if failed.status is None or failed.status in (401, 403, 404, 429, 502, 503, 504):
                return [problem] * len(samples)
        except _UNEXPECTED_SHAPE as error:
            message = f"the response has an unknown format: {excerpt(repr(error))}"
            problem = SampleError("model_failed", message)
        if len(samples) == 1:
            return [problem]
        middle = len(samples) // 2
        halves = await asyncio.gather(
            self._scored(samples[:middle]), self._scored(samples[middle:])
        )
        return [outcome for half in halves for outcome in half]

    async def _request_scores(self, samples: Sequence[Sample]) -> list[Outcome]:
        if self._client is None:
            raise RuntimeError("the model was not opened")
        answer = await self._client.request("POST", self._api.path, self._api.body(samples))
        # In a thread, as a recipe's pattern may be slow.
        outcomes = await asyncio.to_thread(self._api.read, answer, len(samples))
        if len(outcomes) != len(samples):
            raise ValueError(f"{len(samples)} samples were sent, {len(outcomes)} scores received")
        return [_within(*pair) for pair in zip(outcomes, samples, strict=True)]

    @property
    def _url(self) -> str:
        return without_password(self._spec.url)

    async def _read(self, client: RemoteClient, body: object) -> list[Outcome]:
        return self._api.read(await client.request("POST", self._api.path, body), 1)

    async def _require_raw(self, client: RemoteClient) -> None:
        """Raise `CheckpointError` if the server applies an activation anyway.

        Old servers silently ignore the option. Then scores with and without activation are equal
        and between 0 and 1.
        """
        seen: list[float] = []
        for probe in _probes(self._spec):
            body = self._api.body([probe])
            raw = _numbers(await self._read(client, body))
            activated = self._api.with_activation(body)
            if activated is None or raw != _numbers(await self._read(client, activated)):
                return
            seen += raw
        if seen and all(0 <= number <= 1 for number in seen):
            raise CheckpointError(
                f"{self._url} gives the same scores with and without activation, all within "
                "[0, 1]: it always applies an activation; run a newer version"
            )


def _probes(spec: RemoteSpec) -> list[Sample]:
    """Return samples with all fields that the recipe's templates use."""
    names = [name for text in spec.templates for name in TextTemplate(text).names]
    return [replace(probe, fields=dict.fromkeys(names, "It is warm.")) for probe in _PROBES]


def _within(outcome: Outcome, sample: Sample) -> Outcome:
    """Return a score whose segments lie in the completion, where rewards are placed by them."""
    length = len(sample.completion_text)
    if isinstance(outcome, Score):
        spans = [one.span for one in outcome.segments or ()]
        spans += [one.span for some in (outcome.output_segments or {}).values() for one in some]
        for start, end in (*spans, *(outcome.judged or ())):
            if not start <= end <= length:
                return SampleError(
                    "model_failed",
                    f"the remote model judged [{start}, {end}], but the completion has {length} "
                    "characters",
                )
    return outcome


def _numbers(outcomes: Sequence[Outcome]) -> list[float]:
    numbers: list[float] = []
    for outcome in outcomes:
        if isinstance(outcome, Score):
            numbers += [] if outcome.value is None else [outcome.value]
            numbers += (outcome.outputs or {}).values()
    return numbers
