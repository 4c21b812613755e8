"""Scores a dataset in this process or over HTTP."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import numpy as np
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alarm_models.backoff import backoff_s
from alarm_models.combination.all_rules import RuleParams
from alarm_models.combination.rewards import (
    HolisticDecision,
    ScoredSample,
    aspect_reward,
    combine_rewards,
    decide,
)
from alarm_models.errors import SampleError
from alarm_models.recipe.schema import AspectSpec, HolisticSpec, Recipe
from alarm_models.recipe.specs import require_address, usable_key
from alarm_models.reward_models.remote.connections import (
    NoAnswer,
    ask_async,
    excerpt,
    open_async_client,
    parsed,
    without_password,
)
from alarm_models.reward_models.remote.http import is_retryable
from alarm_models.sample_json import sample_to_json, score_from_json
from alarm_models.study.baselines import BASELINES
from alarm_models.study.pairs import Floats
from alarm_models.types import AspectReward, Reward, Sample, Score
from alarm_service.engine.model_set import compares_samples
from alarm_service.errors import ServiceError, format_validation_errors
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.errors import StudyError
from alarm_service.schemas import ScoreResponse
from alarm_service.settings import Settings

if TYPE_CHECKING:
    from alarm_service.engine.engine import RewardEngine

__all__ = [
    "HOLISTIC",
    "Column",
    "LocalScorer",
    "Peer",
    "Refused",
    "RemoteScorer",
    "Scorer",
    "Scores",
    "columns_of",
    "key_for_header",
    "open_engine",
    "open_peer",
    "open_scorer",
    "progress_bar",
    "require_names",
    "require_url",
    "rewards_of",
    "score_all",
    "values_of",
]

_MAX_ATTEMPTS = 6

#: A response may have the segments of thousands of samples.
_MAX_ANSWER_BYTES = 256 << 20


class Refused(StudyError):
    """The server refused a request permanently; ``status`` is the response's status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Peer:
    """An HTTP server, called from one event loop; raises `AddressError`.

    ``transport`` replaces the network in tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        timeout_s: float,
        num_connections: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._key = key
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=num_connections)
        self._client = open_async_client(url, key, limits=limits, transport=transport)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post(self, url: str, body: object) -> Any:
        """Post JSON and return the response; raise `Refused`, or `StudyError` if there is none."""
        shown = without_password(url)
        for attempt in range(_MAX_ATTEMPTS):
            headers: Mapping[str, str] = {}
            try:
                answer = await ask_async(
                    self._client,
                    "POST",
                    url,
                    timeout_s=self._timeout_s,
                    max_bytes=_MAX_ANSWER_BYTES,
                    json=body,
                )
                if answer.is_success:
                    return parsed(answer, self._key)
            except NoAnswer as error:
                fault = f"{shown} {error}"
                if error.is_of_no_use:
                    raise StudyError(fault) from error
            else:
                body_excerpt = excerpt(answer.text, self._key)
                fault = f"{shown} returned {answer.status_code}: {body_excerpt}"
                if not is_retryable(answer.status_code):
                    raise Refused(fault, answer.status_code)
                headers = answer.headers
            if attempt + 1 < _MAX_ATTEMPTS:
                await asyncio.sleep(backoff_s(attempt, headers))
        raise StudyError(f"{fault} ({_MAX_ATTEMPTS} attempts)")


def key_for_header(key: str | None, name: str) -> str | None:
    """Return a valid key; raise `StudyError`, which contains ``name`` but not the key."""
    try:
        return None if key is None else usable_key(key)
    except ValueError as error:
        raise StudyError(f"{name}: {error}") from error


def require_url(url: str, flag: str) -> str:
    """Return a server's URL without a trailing slash; raise `StudyError` if it is invalid."""
    if not url.startswith(("http://", "https://")):
        raise StudyError(f"{flag} must be a URL such as http://HOST:8000, got {excerpt(url)!r}")
    try:
        return require_address(url).rstrip("/")
    except ValueError as error:
        raise StudyError(f"{flag}: {error}") from error


_TIMEOUT_S = 600


#: Outcomes by model, one per sample.
Outcomes = Mapping[str, Sequence[Score | SampleError]]


class Scorer(Protocol):
    """Scores samples with a recipe's models."""

    async def score(self, models: Sequence[str], samples: Sequence[Sample]) -> Outcomes:
        """Score samples with the recipe's models of these names."""

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint of a model that was used."""


@asynccontextmanager
async def open_scorer(recipe: Recipe, settings: Settings, url: str | None) -> AsyncIterator[Scorer]:
    """Load the recipe's models in this process, or use the server at ``url``."""
    if url is None:
        async with open_engine(recipe, settings) as engine:
            yield LocalScorer(engine, recipe)
        return
    async with open_peer(url, settings) as (peer, base):
        yield RemoteScorer(peer, base, recipe)


@asynccontextmanager
async def open_peer(
    url: str, settings: Settings, *, num_connections: int = 1
) -> AsyncIterator[tuple[Peer, str]]:
    """Open connections to the server at ``--url``; yield them with the server's address."""
    base = require_url(url, "--url")
    api_key = settings.api_key[0].get_secret_value() if settings.api_key else None
    key = key_for_header(api_key, "--api-key or ALARM_API_KEY")
    peer = Peer(base, key, timeout_s=_TIMEOUT_S, num_connections=num_connections)
    try:
        yield peer, base
    finally:
        await peer.close()


@asynccontextmanager
async def open_engine(recipe: Recipe, settings: Settings) -> AsyncIterator[RewardEngine]:
    """Load a recipe's models in this process; raise `StudyError` if that fails."""
    # torch takes seconds to import, and is not needed with --url.
    from alarm_models.process_tuning import disable_malloc_trim
    from alarm_service.api.app import create_engine
    from alarm_service.observability.logging import set_up_logs

    set_up_logs("warning")
    disable_malloc_trim()
    engine = create_engine([recipe], settings)
    await engine.start(logs_failure=False)
    try:
        if engine.life.failure is not None:
            raise StudyError(str(engine.life.failure))
        yield engine
    finally:
        await engine.close()


class LocalScorer:
    """Runs the recipe's models in this process."""

    def __init__(self, engine: RewardEngine, recipe: Recipe) -> None:
        self._engine = engine
        self._recipe = recipe

    async def score(self, models: Sequence[str], samples: Sequence[Sample]) -> Outcomes:
        """Score samples; raise `ServiceError` if the engine's queue is full.

        Models on one base share forward passes.
        """
        from alarm_service.engine.hierarchical import SampleScorer

        async with self._engine.admit(samples) as model_set:
            loaded = {name: model_set.model_of(self._recipe, name) for name in models}
            scorer = SampleScorer(self._engine, samples)
            scores = await scorer.score(loaded.values(), range(len(samples)))
        return {name: list(scores[model].values()) for name, model in loaded.items()}

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint of a model."""
        return self._engine.model_set.model_of(self._recipe, model).fingerprint


class RemoteScorer:
    """Gets raw scores from a server, which must serve a recipe with the same name and models."""

    def __init__(self, peer: Peer, url: str, recipe: Recipe) -> None:
        self._peer = peer
        self._url = f"{url}/score"
        self._recipe = recipe
        self._fingerprints: dict[str, str] = {}

    async def score(self, models: Sequence[str], samples: Sequence[Sample]) -> Outcomes:
        """Score samples over HTTP; raise `StudyError` with the server's message."""
        return {model: await self._score(model, samples) for model in models}

    def fingerprint(self, model: str) -> str:
        """Return the fingerprint received with the scores."""
        return self._fingerprints[model]

    async def _score(self, model: str, samples: Sequence[Sample]) -> Sequence[Score | SampleError]:
        body = {
            "model": f"{self._recipe.name}/{model}",
            "samples": [sample_to_json(sample) for sample in samples],
        }
        answer = await self._peer.post(self._url, body)
        try:
            scored = ScoreResponse.model_validate(answer, strict=True)
            is_graded = self._recipe.models[model].grades_segments
            outcomes = [_outcome(row, is_graded=is_graded) for row in answer["scores"]]
        except ValidationError as error:
            raise self._invalid(format_validation_errors(error.errors())) from error
        except (KeyError, TypeError, ValueError) as error:
            raise self._invalid(str(error)) from error
        if len(outcomes) != len(samples):
            raise StudyError(
                f"{without_password(self._url)} returned {len(outcomes)} scores for "
                f"{len(samples)} samples"
            )
        self._fingerprints[model] = scored.fingerprint
        return outcomes

    def _invalid(self, reason: str) -> StudyError:
        return StudyError(f"{without_password(self._url)} returned an invalid response: {reason}")


def _outcome(row: Mapping[str, Any], *, is_graded: bool) -> Score | SampleError:
    if row["error"] is None:
        return score_from_json(row, is_graded=is_graded)
    return SampleError(row["error"]["code"], row["error"]["message"])


#: Samples in flight at once: enough to fill batches with similar lengths.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores by model, one per sample, None if it failed; ``faults`` describes the failures.

    ``fingerprints`` are the models' fingerprints: equal fingerprints mean equal scores.
    """

    by_model: Mapping[str, Sequence[Score | None]]
    fingerprints: Mapping[str, str]
    faults: tuple[str, ...]

    def of(self, spec: HolisticSpec | AspectSpec) -> Sequence[Score | None]:
        """Return the scores of a holistic or aspect table: its model's, or one output of it."""
        return [_output(score, spec.output) for score in self.by_model[spec.model]]


def progress_bar() -> Progress:
    """Return a progress bar on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def score_all(
    samples: Sequence[Sample], recipe: Recipe, settings: Settings, url: str | None
) -> Scores:
    """Score all samples with the recipe's holistic model and every aspect model."""
    models = list(
        dict.fromkeys([recipe.holistic.model, *(one.model for one in recipe.aspects.values())])
    )
    try:
        return asyncio.run(_score_all(samples, models, recipe, settings, url))
    except ServiceError as error:
        raise StudyError(error.message) from error


async def _score_all(
    samples: Sequence[Sample],
    models: Sequence[str],
    recipe: Recipe,
    settings: Settings,
    url: str | None,
) -> Scores:
    places, samples = _distinct(samples, models, recipe)
    async with open_scorer(recipe, settings, url) as scorer:
        with progress_bar() as progress:
            task = progress.add_task("scoring", total=len(models) * len(samples))
            outcomes: dict[str, list[Score | SampleError]] = {model: [] for model in models}
            for start in range(0, len(samples), _AT_ONCE):
                chunk = samples[start : start + _AT_ONCE]
                for model, found in (await scorer.score(models, chunk)).items():
                    outcomes[model] += found
                progress.advance(task, len(models) * len(chunk))
        fingerprints = {model: scorer.fingerprint(model) for model in models}
    outcomes = {model: [found[at] for at in places] for model, found in outcomes.items()}
    return Scores(
        {
            model: [one if isinstance(one, Score) else None for one in found]
            for model, found in outcomes.items()
        },
        fingerprints,
        tuple(fault for model, found in outcomes.items() for fault in _faults(model, found)),
    )


def _distinct(
    samples: Sequence[Sample], models: Sequence[str], recipe: Recipe
) -> tuple[Sequence[int], Sequence[Sample]]:
    """Return each distinct sample once, and the index of each sample's.

    Equal samples in different batches would differ in the last bits, and not be ties. Models that
    compare samples get them all.
    """
    if any(compares_samples(recipe.models[model]) for model in models):
        return range(len(samples)), samples
    index_of: dict[str, int] = {}
    distinct: list[Sample] = []
    places = []
    for sample in samples:
        key = json.dumps(sample_to_json(sample), sort_keys=True)
        if key not in index_of:
            index_of[key] = len(distinct)
            distinct.append(sample)
        places.append(index_of[key])
    return places, distinct


def _faults(model: str, found: Sequence[Score | SampleError]) -> list[str]:
    errors = [one for one in found if isinstance(one, SampleError)]
    counts = Counter(error.code for error in errors)
    examples = {error.code: error.message for error in errors}
    return [
        f"{model} could not score {count} of {len(found)} completions, which are left out: "
        f"{code}, for example {examples[code]!r}"
        for code, count in counts.items()
    ]


def _output(score: Score | None, name: str | None) -> Score | None:
    try:
        return None if score is None else score.output(name)
    except SampleError:
        return None


def rewards_of(
    samples: Sequence[Sample], recipe: Recipe, scores: Scores, params: RuleParams
) -> Floats:
    """Return the reward of each sample ``[samples]``, NaN if a required score is missing."""
    holistic = scores.of(recipe.holistic)
    aspects = {name: _rewarded(samples, recipe, scores, name) for name in recipe.aspects}
    scored: dict[int, ScoredSample] = {}
    for index, sample in enumerate(samples):
        decision = _decision(holistic[index], params)
        own = {name: one[index] for name, one in aspects.items()}
        if decision is not None and _is_complete(decision, own, params):
            scored[index] = ScoredSample(sample, decision, own)
    rewards = np.full(len(samples), np.nan)
    for index, reward in zip(scored, combine_rewards(list(scored.values()), params), strict=True):
        if isinstance(reward, Reward):
            rewards[index] = reward.reward
    return rewards


def _rewarded(
    samples: Sequence[Sample], recipe: Recipe, scores: Scores, name: str
) -> list[AspectReward | None]:
    rule = recipe.aspect_rule(name, None)
    return [
        None if score is None else aspect_reward(score, rule, sample)
        for sample, score in zip(samples, scores.of(recipe.aspects[name]), strict=True)
    ]


def _decision(score: Score | None, params: RuleParams) -> HolisticDecision | None:
    try:
        return None if score is None else decide(score, params)
    except SampleError:
        return None


def _is_complete(
    holistic: HolisticDecision, aspects: Mapping[str, AspectReward | None], params: RuleParams
) -> bool:
    return not holistic.aspects_count or all(
        one is not None or not params.needs_aspect(name) for name, one in aspects.items()
    )


HOLISTIC = "holistic"


@dataclass(frozen=True, slots=True)
class Column:
    """A named score ``[completions]``, NaN if missing; higher or lower may be better."""

    name: str
    values: Floats
    is_lower_better: bool
    is_aspect: bool = False

    @property
    def oriented(self) -> Floats:
        """The values, negated if lower is better."""
        return -self.values if self.is_lower_better else self.values


def columns_of(
    material: Material, recipe: Recipe, scores: Scores, lower: Collection[str]
) -> list[Column]:
    """Return columns for the holistic score, the aspects, the file's values and the baselines.

    The value of an aspect is its model's raw score; for segments it is the share of right ones, as
    in the paper's figures. Lower is better for the names in ``lower`` and for aspects whose reward
    falls as the score rises. An aspect or value replaces a baseline with the same name.
    """
    found = {HOLISTIC: Column(HOLISTIC, values_of(scores.of(recipe.holistic)), False)}
    for name, spec in recipe.aspects.items():
        values = values_of(scores.of(spec))
        found[name] = Column(name, values, name in lower or _falls(recipe, spec), is_aspect=True)
    for name, own in material.values.items():
        found[name] = Column(name, np.array(own), name in lower)
    for name, measure in BASELINES.items():
        texts = [sample.completion_text for sample in material.samples]
        found.setdefault(
            name, Column(name, np.array([measure(text) for text in texts]), name in lower)
        )
    return list(found.values())


def require_names(material: Material, recipe: Recipe, lower: Collection[str]) -> None:
    """Raise `StudyError` for conflicting or unknown names; call before scoring."""
    rewards = [HOLISTIC, *recipe.aspects]
    for name in material.values:
        if name in rewards:
            raise StudyError(
                f"values.{name} has the same name as a reward of recipe {recipe.name!r}"
            )
    names = list(dict.fromkeys([*rewards, *material.values, *BASELINES]))
    unknown = sorted(set(lower) - set(names))
    if unknown:
        raise StudyError(f"--lower: unknown names {unknown}; known are {', '.join(names)}")


def values_of(scores: Sequence[Score | None]) -> Floats:
    """Return the values of scores, NaN if missing."""
    return np.array(
        [math.nan if one is None or one.value is None else one.value for one in scores], dtype=float
    )


def _falls(recipe: Recipe, spec: AspectSpec) -> bool:
    """Whether the aspect's reward falls as its score rises."""
    model = recipe.models[spec.model]
    if model.scores_errors:
        slope = spec.negative - spec.positive
    elif not model.judges_wholes:
        slope = spec.positive - spec.negative
    else:
        slope = spec.scale
    return slope * (spec.weight or 1.0) < 0
