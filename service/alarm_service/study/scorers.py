"""Who scores a study's completions: an engine in this process, or a server that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from alarm_models.errors import SampleError
from alarm_models.recipe import Recipe
from alarm_models.remote.client import without_password
from alarm_models.sample import Message, Sample, Score, SegmentScore, Span
from alarm_service.faults import explained
from alarm_service.settings import Settings
from alarm_service.study.errors import StudyError
from alarm_service.study.http import Peer, key_for_header, require_url
from alarm_service.web.answers import ScoreOut, ScoreResponse

if TYPE_CHECKING:
    from alarm_service.engine import Engine

__all__ = ["LocalScorer", "RemoteScorer", "Scorer", "open_scorer"]

_PATIENCE_S = 600


class Scorer(Protocol):
    """Scores samples with a recipe's models."""

    async def score(self, model: str, samples: Sequence[Sample]) -> Sequence[Score | SampleError]:
        """Score samples with the model that the recipe calls by that name."""

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint of a model that has scored."""


@asynccontextmanager
async def open_scorer(recipe: Recipe, settings: Settings, url: str | None) -> AsyncIterator[Scorer]:
    """Load the recipe's models here, or find the recipe on the server at ``url``."""
    if url is None:
        async with _local(recipe, settings) as scorer:
            yield scorer
        return
    base = require_url(url, "--url")
    given = settings.api_key[0].get_secret_value() if settings.api_key else None
    key = key_for_header(given, "--api-key or ALARM_API_KEY")
    peer = Peer(base, key, timeout_s=_PATIENCE_S, num_connections=1)
    try:
        yield RemoteScorer(peer, base, recipe)
    finally:
        await peer.close()


@asynccontextmanager
async def _local(recipe: Recipe, settings: Settings) -> AsyncIterator[Scorer]:
    # Torch takes seconds to import, and a study of a server needs none.
    from alarm_service.app import create_engine
    from alarm_service.telemetry.logs import set_up_logs

    set_up_logs("warning")
    engine = create_engine([recipe], settings)
    await engine.start()
    try:
        if engine.life.failure is not None:
            raise StudyError(str(engine.life.failure))
        yield LocalScorer(engine, recipe)
    finally:
        await engine.close()


class LocalScorer:
    """Runs the recipe's models in this process."""

    def __init__(self, engine: Engine, recipe: Recipe) -> None:
        self._engine = engine
        self._recipe = recipe

    async def score(self, model: str, samples: Sequence[Sample]) -> Sequence[Score | SampleError]:
        """Score samples; raise `ServiceError` where more come at once than the engine takes."""
        name = f"{self._recipe.name}/{model}"
        return (await self._engine.score(name, samples)).outcomes

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint of a model."""
        return self._engine.generation.model_of(self._recipe, model).fingerprint


class RemoteScorer:
    """Asks a server for raw scores; its recipe must have the same name and models."""

    def __init__(self, peer: Peer, url: str, recipe: Recipe) -> None:
        self._peer = peer
        self._url = f"{url}/score"
        self._recipe = recipe
        self._fingerprints: dict[str, str] = {}

    async def score(self, model: str, samples: Sequence[Sample]) -> Sequence[Score | SampleError]:
        """Score samples over HTTP; raise `StudyError` with the server's own words."""
        body = {
            "model": f"{self._recipe.name}/{model}",
            "samples": [_on_wire(sample) for sample in samples],
        }
        answer = await self._peer.post(self._url, body)
        try:
            scored = ScoreResponse.model_validate(answer, strict=True)
        except ValidationError as error:
            raise StudyError(
                f"{without_password(self._url)} does not answer as a reward server does: "
                f"{explained(error.errors())}"
            ) from error
        if len(scored.scores) != len(samples):
            raise StudyError(
                f"{without_password(self._url)} gave {len(scored.scores)} scores for "
                f"{len(samples)} samples"
            )
        self._fingerprints[model] = scored.fingerprint
        return [_off_wire(one) for one in scored.scores]

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint that came with the scores."""
        return self._fingerprints[model]


def _on_wire(sample: Sample) -> dict[str, Any]:
    offsets = sample.token_offsets
    wire: dict[str, Any] = {
        "prompt": _content(sample.prompt),
        "completion": _content(sample.completion),
        "fields": dict(sample.fields),
        "segments": {
            name: [list(span) for span in spans] for name, spans in sample.segments.items()
        },
    }
    if offsets is not None:
        wire["token_offsets"] = [list(span) for span in offsets]
    return wire


def _content(content: str | tuple[Message, ...]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"role": one.role, "content": one.content} for one in content]


def _off_wire(score: ScoreOut) -> Score | SampleError:
    if score.error is not None:
        return SampleError(score.error.code, score.error.message)
    segments = None if score.segments is None else tuple(
        # The margin of the positive label's logit over the negative's: a tie is negative.
        SegmentScore(
            Span(one.start, one.end), one.label, one.score,
            None if one.score is None else one.score > 0,
        )
        for one in score.segments
    )  # fmt: skip
    return Score(score.score, segments, score.num_tokens, score.truncated)
