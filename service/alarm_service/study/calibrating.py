"""`alarm calibrate`: a recipe's constants from scores, and what its aspects then add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alarm_models.recipe import AspectSpec, Recipe
from alarm_models.sample import Score
from alarm_models.study.addition import Addition, addition, correlation
from alarm_models.study.baselines import num_words
from alarm_models.study.calibration import Moments, admission_for, admitted_share, moments
from alarm_models.study.pairs import Floats
from alarm_service.study.columns import values_of
from alarm_service.study.errors import StudyError
from alarm_service.study.material import Material
from alarm_service.study.recipe_writing import Change
from alarm_service.study.scores import Scores

__all__ = ["CalibrationResult", "calibrate", "changes_of"]

Indices = NDArray[np.intp]

#: Digits after the point of what is written into a recipe.
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A recipe's constants, found and as they were, and what follows from the found ones.

    ``threshold`` counts in standard deviations. ``additions`` are over admitted completions, with
    the recipe's weights (1 for a weight of 0, as if it were chosen) and its shaping.
    ``holistic_part`` is what the holistic term gives them; ``holistic_at_threshold`` the least of
    it, beside which an addition is the jump at the threshold. ``reward_with_length`` is
    the correlation of the whole reward with the number of words over all completions.
    """

    recipe: str
    fingerprints: Mapping[str, str]
    num_completions: int
    holistic: Moments
    threshold: float
    wanted_share: float
    admitted_share: float
    share_before: float
    mean_before: float
    std_before: float
    threshold_before: float
    aspects: Mapping[str, Moments]
    additions: Mapping[str, Addition]
    holistic_part: Moments
    holistic_at_threshold: float
    reward_with_length: float
    holistic_with_length: float
    faults: Sequence[str]
    normalized: Floats


def calibrate(
    material: Material, recipe: Recipe, scores: Scores, wanted_share: float
) -> CalibrationResult:
    """Find mean, standard deviation and threshold; raise `StudyError` where scores cannot tell."""
    raw = values_of(scores.by_model[recipe.holistic.model])
    before = (raw - recipe.holistic.mean) / recipe.holistic.std
    try:
        found = moments(raw)
        z = (raw - found.mean) / found.std if found.std else np.zeros_like(raw)
        admission = admission_for(z, wanted_share)
    except ValueError as error:
        raise StudyError(f"the holistic model cannot be calibrated: {error}") from error
    words = [int(num_words(one.completion_text)) for one in material.samples]
    admitted = np.flatnonzero(z >= admission.threshold)
    parts = recipe.holistic.weight * z
    return CalibrationResult(
        recipe=recipe.name,
        fingerprints=scores.fingerprints,
        num_completions=len(material.samples),
        holistic=found,
        threshold=admission.threshold,
        wanted_share=wanted_share,
        admitted_share=admission.share,
        share_before=admitted_share(before, recipe.hierarchy.threshold),
        mean_before=recipe.holistic.mean,
        std_before=recipe.holistic.std,
        threshold_before=recipe.hierarchy.threshold,
        aspects={
            name: _moments(scores.by_model[spec.model]) for name, spec in recipe.aspects.items()
        },
        additions={
            name: _addition(scores.by_model[spec.model], words, spec, admitted)
            for name, spec in recipe.aspects.items()
        },
        holistic_part=_spread(parts[admitted]),
        holistic_at_threshold=recipe.holistic.weight * admission.threshold,
        reward_with_length=correlation(_rewards(recipe, scores, parts, admitted), words),
        holistic_with_length=correlation(raw, words),
        faults=scores.faults,
        normalized=z,
    )


def changes_of(result: CalibrationResult, recipe: Recipe) -> dict[str, Change]:
    """Return the constants to write: the holistic ones, and an aspect's where it is normalised.

    An aspect is normalised where it judges whole completions and its table names a mean or a
    standard deviation: others, such as a probability, are meant to be read as they are.
    """
    over = f"over {result.holistic.count} completions, by alarm calibrate"
    changes = {
        "holistic.mean": _change(result.holistic.mean, over),
        "holistic.std": _change(result.holistic.std, over),
        "hierarchy.threshold": _change(
            result.threshold, f"admits {result.admitted_share:.1%} of them"
        ),
    }
    for name, spec in recipe.aspects.items():
        own = result.aspects[name]
        is_whole = recipe.models[spec.model].kind != "segments"
        if is_whole and {"mean", "std"} & spec.model_fields_set and own.count and own.std > 0:
            changes[f"aspects.{name}.mean"] = _change(own.mean, over)
            changes[f"aspects.{name}.std"] = _change(own.std, over)
    return changes


def _change(value: float, reason: str) -> Change:
    return Change(round(value, _DIGITS), reason)


def _moments(scores: Sequence[Score | None]) -> Moments:
    return _spread(values_of(scores))


def _spread(values: Floats) -> Moments:
    known = values[~np.isnan(values)]
    if not len(known):
        return Moments(float("nan"), float("nan"), 0)
    return Moments(float(known.mean()), float(known.std()), len(known))


def _addition(
    scores: Sequence[Score | None], words: Sequence[int], spec: AspectSpec, admitted: Indices
) -> Addition:
    known = [(scores[index], words[index]) for index in admitted]
    return addition(
        [score for score, _ in known if score is not None],
        [count for score, count in known if score is not None],
        spec.rule(None),
        spec.weight or 1.0,
    )


def _rewards(recipe: Recipe, scores: Scores, parts: Floats, admitted: Indices) -> Floats:
    """Return the hierarchical rewards of all completions by the recipe's own weights."""
    rewards = parts.copy()
    for spec in recipe.aspects.values():
        rule = spec.rule(None)
        for index in admitted:
            score = scores.by_model[spec.model][index]
            values = [] if score is None else rule.values(score)
            rewards[index] += spec.weight * sum(value for _, value in values)
    return rewards
