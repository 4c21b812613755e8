"""The parity check: a recipe is served only if its stored samples score as they did."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from alarm_models.errors import SampleError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Reward, Score
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.hierarchical import reward_admitted
from alarm_service.engine.model_set import LoadedModel, ModelSet
from alarm_service.engine.parity import (
    Parity,
    ParityError,
    StoredModel,
    StoredOrigin,
    StoredSample,
    StoredScore,
    difference,
    is_close,
    read_parity,
    shown,
)
from alarm_service.schemas import SampleIn, sample_in

__all__ = ["record", "require_parity"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _CurrentScores:
    """What samples score now: a list by model, and the rewards, in the samples' order."""

    models: dict[str, LoadedModel]
    scores: dict[str, Sequence[Score | SampleError]]
    rewards: Sequence[Reward | SampleError] | None


async def require_parity(engine: RewardEngine, model_set: ModelSet, recipe: Recipe) -> None:
    """Raise `ParityError`, naming the first difference, unless stored samples score as they did.

    Scores in another precision than the stored may differ by 3%, or by 0.03 where they are small;
    rewards are then not compared, since such a difference may carry one past a threshold.
    """
    if recipe.parity is None:
        return
    file = Path(recipe.parity)
    stored = await asyncio.to_thread(read_parity, file)
    found = await _current_scores(engine, model_set, recipe, [one.sample for one in stored.samples])
    problem = _first_problem(recipe, stored, found)
    if problem is not None:
        raise ParityError(
            f"recipe {recipe.name!r} does not score as {file} says: {problem}. If that is meant, "
            "store the scores of now (`alarm record`), or leave the check out (`--set parity=`)"
        )
    _log.info("parity", recipe=recipe.name, num_samples=len(stored.samples))


async def record(engine: RewardEngine, recipe: Recipe, samples: Sequence[SampleIn]) -> Parity:
    """Return what the samples score now; raise `ParityError` where one has no score."""
    model_set = engine.model_set
    found = await _current_scores(engine, model_set, recipe, samples)
    lines = []
    for index, sample in enumerate(samples):
        scores = {}
        for name, outcomes in found.scores.items():
            outcome = outcomes[index]
            if isinstance(outcome, SampleError):
                raise ParityError(f"sample {index + 1} has no score of {name!r}: {outcome}")
            scores[name] = _stored(outcome)
        reward = None if found.rewards is None else found.rewards[index]
        if isinstance(reward, SampleError):
            raise ParityError(f"sample {index + 1} has no reward: {reward}")
        lines.append(
            StoredSample(
                sample=sample, scores=scores, reward=None if reward is None else reward.reward
            )
        )
    models = {
        name: StoredModel(fingerprint=one.fingerprint, dtype=one.model.dtype)
        for name, one in found.models.items()
    }
    fingerprint = model_set.fingerprint(recipe, Overrides())
    return Parity(StoredOrigin(recipe=recipe.name, fingerprint=fingerprint, models=models), lines)


async def _current_scores(
    engine: RewardEngine, model_set: ModelSet, recipe: Recipe, samples: Sequence[SampleIn]
) -> _CurrentScores:
    """Score samples with every model of the recipe but those on other servers, and reward them."""
    given = [sample_in(sample) for sample in samples]
    everything = model_set.models_of(recipe)
    models = {
        name: loaded
        for name, loaded in everything.items()
        if not (isinstance(loaded.model, HostModel) and loaded.model.is_elsewhere)
    }
    scores = {
        name: (await engine.score_admitted(loaded, given)).outcomes
        for name, loaded in models.items()
    }
    has_all = models.keys() == everything.keys()
    rewards = await reward_admitted(engine, model_set, recipe, given) if has_all else None
    return _CurrentScores(models, scores, rewards)


def _first_problem(recipe: Recipe, stored: Parity, found: _CurrentScores) -> str | None:
    tolerance = recipe.parity_tolerance
    lacking = sorted(found.models.keys() ^ stored.origin.models.keys())
    if lacking:
        return f"it has no scores of {', '.join(map(repr, lacking))}, or the recipe no such model"
    rough = {
        name for name, one in stored.origin.models.items() if _is_rough(one, found.models[name])
    }
    for index, line in enumerate(stored.samples):
        for name, score in line.scores.items():
            problem = difference(
                score, found.scores[name][index], tolerance, is_rough=name in rough
            )
            if problem is not None:
                prints = (stored.origin.models[name].fingerprint, found.models[name].fingerprint)
                return (
                    f"{_sample(index, line)}, model {name!r}: {problem} {_changed_origin(*prints)}"
                )
        if not rough and recipe.parity_rewards and found.rewards is not None:
            reward = found.rewards[index]
            now = reward.reward if isinstance(reward, Reward) else None
            if line.reward is not None and not is_close(
                line.reward, now, tolerance, is_rough=False
            ):
                told = shown(now) if now is not None else f"the error {reward}"
                return f"{_sample(index, line)}, reward: stored {shown(line.reward)}, found {told}"
    return None


def _is_rough(stored: StoredModel, loaded: LoadedModel) -> bool:
    dtype = loaded.model.dtype
    return None not in (stored.dtype, dtype) and stored.dtype != dtype


def _stored(score: Score) -> StoredScore:
    segments = None if score.segments is None else [one.score for one in score.segments]
    outputs = None if score.outputs is None else dict(score.outputs)
    return StoredScore(score=score.value, segments=segments, outputs=outputs)


def _sample(index: int, line: StoredSample) -> str:
    return f"sample {index + 1}" + ("" if line.sample.id is None else f" ({line.sample.id})")


def _changed_origin(stored: str, found: str) -> str:
    if stored == found:
        return "(with the stored fingerprint: another machine or library)"
    return f"(the fingerprint was {stored}, and is {found})"
