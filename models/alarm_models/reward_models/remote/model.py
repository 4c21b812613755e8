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

#: Two texts whose logits are hardly both where a sigmoid leaves them.
_PROBES = (Sample("Is it warm?", "It is."), Sample("Is it cold?", "No! It is not, not at all."))

#: An answer of another shape than its API promises.
_UNEXPECTED_SHAPE = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip

#: What a server, or a proxy before it, responds with while it is busy, starting or gone.
_UNAVAILABLE = frozenset({429, 502, 503, 504})

#: Keys of the spec that change no score.
_WITHOUT_EFFECT = frozenset(
    {
        "url", "api_key", "timeout_s", "max_retries", "max_concurrent", "batch_size",
        "max_answer_bytes",
    }
)  # fmt: skip


@host_kind(RemoteSpec)
class RemoteModel(HostModel):
    """Requests scores from another server; a failure there fails its own samples alone.

    A request that the server refuses is split in halves, down to the sample that it refuses.
    """

    is_elsewhere = True

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        super().__init__("")
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
        """Ask the server which model it serves, and check that its scores are raw.

        Raises `CheckpointError`; `UnreachableError` where the server is away for now.
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
                # One that is still loading responds once it is ready, and then has a fingerprint.
                await client.request("POST", self._api.path, self._api.body(_probes(self._spec)))
            self._identity = await self._server_identity(client)
            await self._require_raw(client)
        except RequestFailed as failed:
            is_away = failed.status is None or failed.status in _UNAVAILABLE
            raise (UnreachableError if is_away else CheckpointError)(str(failed)) from failed
        except _UNEXPECTED_SHAPE as error:
            raise CheckpointError(
                f"{self._url} does not answer as an api `{self._spec.api}` does: "
                f"{excerpt(repr(error))}"
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
        """Score samples, several requests at a time; never raises for what the server does."""
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
            told = f"the answer is of no known shape: {excerpt(repr(error))}"
            problem = SampleError("model_failed", told)
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
        # In a thread: a recipe's pattern may take its time over an answer.
        outcomes = await asyncio.to_thread(self._api.read, answer, len(samples))
        if len(outcomes) != len(samples):
            raise ValueError(f"{len(samples)} samples were sent, {len(outcomes)} scores came")
        return [_within(*pair) for pair in zip(outcomes, samples, strict=True)]

    @property
    def _url(self) -> str:
        return without_password(self._spec.url)

    async def _read(self, client: RemoteClient, body: object) -> list[Outcome]:
        return self._api.read(await client.request("POST", self._api.path, body), 1)

    async def _require_raw(self, client: RemoteClient) -> None:
        """Raise `CheckpointError` if the server applies an activation all the same.

        A server too old to know the option ignores it in silence. Then scores with and without
        activation are the same, and between 0 and 1.
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
                "[0, 1]: it squashes them and cannot be told not to; run a newer one"
            )


def _probes(spec: RemoteSpec) -> list[Sample]:
    """Return samples that have every text that the recipe's templates name."""
    names = [name for text in spec.templates for name in TextTemplate(text).names]
    return [replace(probe, fields=dict.fromkeys(names, "It is warm.")) for probe in _PROBES]


def _within(outcome: Outcome, sample: Sample) -> Outcome:
    """Return a score whose segments lie in the completion, where rewards are placed by them."""
    length = len(sample.completion_text)
    if isinstance(outcome, Score):
        for start, end in (one.span for one in outcome.segments or ()):
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
