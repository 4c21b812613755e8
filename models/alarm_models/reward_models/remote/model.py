"""Kind `remote`: a model behind another server's HTTP API."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx

from alarm_models.cancellation import gather_or_cancel
from alarm_models.errors import CheckpointError, SampleError, UnreachableError
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.base import HostModel, Outcome, gather_limited
from alarm_models.reward_models.registry import host_kind
from alarm_models.reward_models.remote.apis import api_of
from alarm_models.reward_models.remote.connections import excerpt, without_password
from alarm_models.reward_models.remote.http import (
    UNAVAILABLE,
    UNEXPECTED_FORMAT,
    RemoteClient,
    RequestFailed,
    endpoint_failure,
    format_problem,
    json_excerpt,
)
from alarm_models.reward_models.remote.servers import Servers
from alarm_models.types import EndpointFailure, Sample, Score

__all__ = ["RemoteModel"]

#: Two samples whose logits are unlikely to be both within [0, 1].
_PROBES = (Sample("Is it warm?", "It is."), Sample("Is it cold?", "No! It is not, not at all."))

#: Keys of the spec that do not affect scores.
_WITHOUT_EFFECT = frozenset(
    {
        "url", "api_key", "timeout_s", "max_retries", "max_concurrent", "batch_size",
        "max_answer_bytes", "warm_up",
    }
)  # fmt: skip


#: Statuses of failures that no sample of a request causes.
_OF_ALL_SAMPLES = frozenset({401, 403, 404, 429, 502, 503, 504})


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
        self._servers: Servers | None = None
        self._endpoints = ", ".join(map(without_password, spec.urls))
        self._observe: Callable[[EndpointFailure], None] | None = None
        self._identity = ""
        self._patterns = sorted((name, field.pattern) for name, field in fields.items())

    @property
    def fingerprint(self) -> str:
        """A digest of the request, the servers' addresses, and the model they reported."""
        request = self._spec.constants(_WITHOUT_EFFECT)
        addresses = " ".join(sorted(map(_address, self._spec.urls)))
        parts = f"{request}|{self._patterns}|{addresses}|{self._identity}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def observe_failures(self, observe: Callable[[EndpointFailure], None]) -> None:
        """Have ``observe`` called with each failed request and unreadable answer of a judge."""
        self._observe = observe

    async def open(self) -> None:
        """Request which model the servers serve, and check that their scores are raw.

        Raises `CheckpointError`; `UnreachableError` if no server is available for now.
        """
        self._servers = Servers(self._spec, self._identify)
        try:
            await self._servers.open()
            self._identity = self._servers.identity
        except RequestFailed as failed:
            await self.close()
            is_away = failed.status in UNAVAILABLE or (failed.status is None and failed.is_passing)
            raise (UnreachableError if is_away else CheckpointError)(str(failed)) from failed
        except BaseException:
            await self.close()
            raise

    async def _identify(self, client: RemoteClient) -> str:
        """Return what determines a server's scores. Raises `RequestFailed`, `CheckpointError`."""
        try:
            if self._spec.api == "alarm":
                # A server that is still loading has no fingerprint until it is ready.
                await client.attempt("POST", self._api.path, self._api.body(_probes(self._spec)))
            identity = await self._server_identity(client)
            if self._spec.api != "chat":  # a judge's answers cost money, and have no activation
                await self._require_raw(client)
        except UNEXPECTED_FORMAT as error:
            raise CheckpointError(
                f"{client.url} does not respond as api `{self._spec.api}`: {excerpt(repr(error))}"
            ) from error
        return identity

    async def _server_identity(self, client: RemoteClient) -> str:
        try:
            return self._api.identity(await client.attempt("GET", self._api.identity_path))
        except RequestFailed as failed:
            if failed.status in (404, 405):
                return ""  # not every server has the route
            raise

    async def close(self) -> None:
        """Close the connections."""
        if self._servers is not None:
            await self._servers.close()
            self._servers = None

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples with concurrent requests; never raises for errors of the server."""
        return await self._score_shown(samples, self._score_parts)

    async def _score_parts(self, samples: Sequence[Sample]) -> list[Outcome]:
        size = self._api.max_samples
        parts = [samples[start : start + size] for start in range(0, len(samples), size)]
        num_places = self._spec.max_concurrent * len(self._spec.urls)
        outcomes = await gather_limited(self._scored, parts, num_places)
        return [outcome for part in outcomes for outcome in part]

    async def _scored(self, samples: Sequence[Sample]) -> list[Outcome]:
        try:
            return await self._request_scores(samples)
        except SampleError as error:
            problem = error
        except RequestFailed as failed:
            problem = SampleError("model_failed", str(failed))
            is_of_all = failed.status is None or failed.status in _OF_ALL_SAMPLES
            if is_of_all or len(samples) == 1:
                self._report(endpoint_failure(self._endpoints, failed))
                return [problem] * len(samples)
        if len(samples) == 1:
            return [problem]
        middle = len(samples) // 2
        halves = await gather_or_cancel(
            self._scored(samples[:middle]), self._scored(samples[middle:])
        )
        return [outcome for half in halves for outcome in half]

    def _report(self, failure: EndpointFailure) -> None:
        if self._observe is not None:
            self._observe(failure)

    async def _request_scores(self, samples: Sequence[Sample]) -> list[Outcome]:
        if self._servers is None:
            raise RuntimeError("the model was not opened")

        async def read(answer: Any) -> list[Outcome]:
            try:
                # In a thread, as a recipe's pattern may be slow.
                return await asyncio.to_thread(self._outcomes, answer, samples)
            except UNEXPECTED_FORMAT as error:
                shown = json_excerpt(answer, self._spec.api_key)
                message = f"the response {format_problem(error)}: {shown}"
                raise RequestFailed(
                    message, httpx.codes.OK, is_passing=False, is_of_server=True
                ) from error

        body = self._api.body(samples)
        outcomes = await self._servers.request("POST", self._api.path, body, read)
        if self._spec.api == "chat":
            for outcome in outcomes:
                if isinstance(outcome, SampleError):
                    self._report(EndpointFailure(self._endpoints, "unreadable", outcome.summary))
        return outcomes

    def _outcomes(self, answer: Any, samples: Sequence[Sample]) -> list[Outcome]:
        """Return the outcomes in a response. Raises `RequestFailed` for one of another model."""
        stated = self._api.stated_identity(answer)
        if stated not in (None, self._identity):
            raise RequestFailed(
                f"the remote model's fingerprint is {excerpt(stated)} now, it was "
                f"{self._identity}: restart this server to accept the new one",
                is_passing=False,
                is_of_server=True,
            )
        outcomes = self._api.read(answer, len(samples))
        if len(outcomes) != len(samples):
            raise ValueError(f"{len(samples)} samples were sent, {len(outcomes)} scores received")
        return [_within(*pair) for pair in zip(outcomes, samples, strict=True)]

    async def _read(self, client: RemoteClient, body: object) -> list[Outcome]:
        return self._api.read(await client.attempt("POST", self._api.path, body), 1)

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
                f"{client.url} gives the same scores with and without activation, all within "
                "[0, 1]: it always applies an activation; run a newer version"
            )


def _address(text: str) -> str:
    url = urlsplit(text)
    return f"{url.scheme}://{url.hostname}:{url.port}{url.path}"


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
