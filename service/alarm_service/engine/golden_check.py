"""The golden check: a recipe is served only if it reproduces its stored (golden) scores."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alarm_models.errors import AlarmModelsError, SampleError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Reward, Score
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.hierarchical import reward_admitted
from alarm_service.engine.model_set import LoadedModel, ModelSet
from alarm_service.errors import format_validation_errors
from alarm_service.json_lines import parsed_line, read_lines, write_whole
from alarm_service.schemas import SampleIn, sample_in

__all__ = [
    "GoldenError",
    "GoldenScores",
    "StoredModel",
    "StoredOrigin",
    "StoredSample",
    "StoredScore",
    "check_golden_scores",
    "difference",
    "is_close",
    "read_golden_scores",
    "record",
    "shown",
    "write_golden_scores",
]

_log = structlog.get_logger()


class GoldenError(AlarmModelsError):
    """Stored scores are not reproduced or cannot be read; the message says what to do."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoredModel(_Stored):
    """A model with stored scores."""

    fingerprint: str
    dtype: str | None


class StoredOrigin(_Stored):
    """The first line: the origin of the scores."""

    recipe: str
    fingerprint: str
    models: dict[str, StoredModel]


class StoredScore(_Stored):
    """One model's score, and those of its segments and outputs if it has any."""

    score: float | None
    segments: list[float | None] | None = None
    outputs: dict[str, float] | None = None


class StoredSample(_Stored):
    """A line for each sample; a reward that needs another server's scores is not stored."""

    sample: SampleIn
    scores: dict[str, StoredScore]
    reward: float | None = Field(default=None)


_S = TypeVar("_S", bound=_Stored)


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """The contents of a recipe's `parity` file."""

    origin: StoredOrigin
    samples: Sequence[StoredSample]


def read_golden_scores(file: Path) -> GoldenScores:
    """Read a file; raise `GoldenError`, naming the line."""
    try:
        with file.open("rb") as source:
            lines = list(read_lines(source))
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        said = error.strerror if isinstance(error, OSError) else error
        raise GoldenError(f"the parity file {file} cannot be read: {said}") from error
    if len(lines) < 2:
        raise GoldenError(f"{file} has no samples: `alarm record` writes such files")
    (number, first), *rest = lines
    origin = _read(StoredOrigin, first, f"{file}, line {number}")
    samples = [_read(StoredSample, line, f"{file}, line {number}") for number, line in rest]
    return GoldenScores(origin, samples)


def _read(shape: type[_S], line: bytes | None, where: str) -> _S:
    try:
        parsed_line(line)
        return shape.model_validate_json(line or b"")
    except ValidationError as error:
        faults = format_validation_errors(error.errors(), whole="the whole line")
        raise GoldenError(f"{where}: {faults}; `alarm record` writes such files") from error
    except ValueError as error:
        raise GoldenError(
            f"{where} is not JSON: {error}; `alarm record` writes such files"
        ) from error


def write_golden_scores(golden: GoldenScores, file: Path) -> None:
    """Write a file."""
    lines = [golden.origin.model_dump_json()]
    lines += [sample.model_dump_json(exclude_defaults=True) for sample in golden.samples]
    write_whole(file, "".join(f"{line}\n" for line in lines))


#: Tolerance for scores in another precision than the stored ones: bfloat16 has three digits, some
#: of which a network loses.
_ROUGHLY = 0.06


def difference(
    stored: StoredScore, current: Score | SampleError, tolerance: float, *, is_rough: bool
) -> str | None:
    """Describe how a score differs from the stored one; None if it does not.

    ``is_rough`` means another precision: the share of good segments, which a small difference may
    change, is then not compared, only the segments' scores.
    """
    if isinstance(current, SampleError):
        return f"stored {shown(stored.score)}, found the error {current}"
    pairs: list[tuple[str, float | None, float | None]] = []
    if not (is_rough and stored.segments is not None):
        pairs.append(("", stored.score, current.value))
    segments, now_segments = stored.segments or [], [one.score for one in current.segments or ()]
    if len(segments) != len(now_segments):
        return f"stored {len(segments)} segments, found {len(now_segments)}"
    both = zip(segments, now_segments, strict=True)
    pairs += [(f" of segment {place}", *pair) for place, pair in enumerate(both, 1)]
    outputs, now_outputs = stored.outputs or {}, current.outputs or {}
    for name in {**outputs, **now_outputs}:
        pairs.append((f" of output {name!r}", outputs.get(name), now_outputs.get(name)))
    for what, was, value in pairs:
        if not is_close(was, value, tolerance, is_rough=is_rough):
            return f"stored {shown(was)}{what}, found {shown(value)}"
    return None


def is_close(
    stored: float | None, current: float | None, tolerance: float, *, is_rough: bool
) -> bool:
    """Return whether two numbers are within the tolerance, or within 6% if ``is_rough``."""
    if stored is None or current is None:
        return stored is current
    if is_rough:
        tolerance = max(tolerance, _ROUGHLY * max(1.0, abs(stored)))
    return abs(stored - current) <= tolerance


def shown(value: float | None) -> str:
    """Format a number for a message."""
    return "none" if value is None else f"{value:.6g}"


@dataclass(frozen=True, slots=True)
class _CurrentScores:
    """The current scores by model, and the rewards, in the order of the samples."""

    models: dict[str, LoadedModel]
    scores: dict[str, Sequence[Score | SampleError]]
    rewards: Sequence[Reward | SampleError] | None


async def check_golden_scores(engine: RewardEngine, model_set: ModelSet, recipe: Recipe) -> None:
    """Raise `GoldenError`, naming the first difference, unless the stored scores are reproduced.

    Scores in another precision may differ by 6%, or by 0.06 if they are small; rewards are then not
    compared, since such a difference may move one across a threshold.
    """
    if recipe.parity is None:
        return
    file = Path(recipe.parity)
    stored = await asyncio.to_thread(read_golden_scores, file)
    samples = [one.sample for one in stored.samples]
    current = await _current_scores(engine, model_set, recipe, samples)
    problem = _first_problem(recipe, stored, current)
    if problem is not None:
        raise GoldenError(
            f"recipe {recipe.name!r} does not reproduce the scores in {file}: {problem}. If that "
            "is intended, store the current scores (`alarm record`), or skip the check "
            "(`--set parity=`)"
        )
    _log.info("parity", recipe=recipe.name, num_samples=len(stored.samples))


async def record(engine: RewardEngine, recipe: Recipe, samples: Sequence[SampleIn]) -> GoldenScores:
    """Return the samples with their current scores; raise `GoldenError` if one has none."""
    model_set = engine.model_set
    current = await _current_scores(engine, model_set, recipe, samples)
    lines = []
    for index, sample in enumerate(samples):
        scores = {}
        for name, outcomes in current.scores.items():
            outcome = outcomes[index]
            if isinstance(outcome, SampleError):
                raise GoldenError(f"sample {index + 1} has no score of {name!r}: {outcome}")
            scores[name] = _stored(outcome)
        reward = None if current.rewards is None else current.rewards[index]
        if isinstance(reward, SampleError):
            raise GoldenError(f"sample {index + 1} has no reward: {reward}")
        lines.append(
            StoredSample(
                sample=sample, scores=scores, reward=None if reward is None else reward.reward
            )
        )
    models = {
        name: StoredModel(fingerprint=one.fingerprint, dtype=one.model.dtype)
        for name, one in current.models.items()
    }
    fingerprint = model_set.fingerprint(recipe, Overrides())
    return GoldenScores(
        StoredOrigin(recipe=recipe.name, fingerprint=fingerprint, models=models), lines
    )


async def _current_scores(
    engine: RewardEngine, model_set: ModelSet, recipe: Recipe, samples: Sequence[SampleIn]
) -> _CurrentScores:
    """Score samples with the recipe's models, except remote ones, and compute rewards."""
    samples_in = [sample_in(sample) for sample in samples]
    everything = model_set.models_of(recipe)
    models = {
        name: loaded
        for name, loaded in everything.items()
        if not (isinstance(loaded.model, HostModel) and loaded.model.is_elsewhere)
    }
    scores = {
        name: (await engine.score_admitted(loaded, samples_in)).outcomes
        for name, loaded in models.items()
    }
    has_all = models.keys() == everything.keys()
    rewards = await reward_admitted(engine, model_set, recipe, samples_in) if has_all else None
    return _CurrentScores(models, scores, rewards)


def _first_problem(recipe: Recipe, stored: GoldenScores, current: _CurrentScores) -> str | None:
    tolerance = recipe.parity_tolerance
    scored = {name for line in stored.samples for name in line.scores}
    missing = sorted(current.models.keys() ^ (stored.origin.models.keys() | scored))
    if missing:
        return f"it has no scores of {', '.join(map(repr, missing))}, or the recipe no such model"
    rough = {
        name for name, one in stored.origin.models.items() if _is_rough(one, current.models[name])
    }
    for index, line in enumerate(stored.samples):
        for name, score in line.scores.items():
            problem = difference(
                score, current.scores[name][index], tolerance, is_rough=name in rough
            )
            if problem is not None:
                prints = (stored.origin.models[name].fingerprint, current.models[name].fingerprint)
                return (
                    f"{_sample(index, line)}, model {name!r}: {problem} {_changed_origin(*prints)}"
                )
        if not rough and recipe.parity_rewards and current.rewards is not None:
            reward = current.rewards[index]
            now = reward.reward if isinstance(reward, Reward) else None
            if line.reward is not None and not is_close(
                line.reward, now, tolerance, is_rough=False
            ):
                stored_shown = shown(line.reward)
                now_shown = shown(now) if now is not None else f"the error {reward}"
                return f"{_sample(index, line)}, reward: stored {stored_shown}, found {now_shown}"
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


def _changed_origin(stored: str, current: str) -> str:
    if stored == current:
        return "(with the stored fingerprint: another machine or library)"
    return f"(the fingerprint was {stored}, and is {current})"
