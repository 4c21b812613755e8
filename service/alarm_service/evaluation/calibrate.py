"""`alarm calibrate`: mean, std and threshold from scores, and what aspects add past it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alarm_models.combination.rewards import AspectRule
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.study.addition import Addition, addition, correlation
from alarm_models.study.baselines import num_words
from alarm_models.study.calibration import Moments, admission_for, admitted_share, moments
from alarm_models.study.pairs import Floats
from alarm_models.study.shaping_choice import ShapingChoice, shaping_choice
from alarm_models.types import Sample, Score
from alarm_service.evaluation.dataset import Material
from alarm_service.evaluation.errors import StudyError
from alarm_service.evaluation.plots import distributions
from alarm_service.evaluation.recipe_writer import Change
from alarm_service.evaluation.report import (
    Grid,
    Page,
    Paragraph,
    Picture,
    fingerprints,
    percent,
    plain,
)
from alarm_service.evaluation.scoring import Scores, rewards_of, values_of

__all__ = ["CalibrationResult", "Constants", "calibrate", "calibration_page", "changes_of"]

Indices = NDArray[np.intp]

#: Decimal places of constants written to a recipe.
_DIGITS = 6

#: Below it constants have that many significant digits.
_SMALL = 0.01


@dataclass(frozen=True, slots=True)
class Constants:
    """Holistic mean and std, threshold in standard deviations, and the share admitted."""

    mean: float
    std: float
    threshold: float
    admitted_share: float


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A recipe's constants before and after calibration, and what aspects add with the new ones.

    ``additions`` are over admitted completions, with the recipe's weights (1 instead of 0, as if
    the aspect were selected) and its shaping. ``holistic_part`` is the holistic term of the same
    completions, ``holistic_at_threshold`` its minimum: there, the additions are the jump of the
    reward. ``holistic_with_length`` and ``reward_with_length`` are correlations with the number of
    words, over all completions.
    """

    recipe: str
    fingerprints: Mapping[str, str]
    num_completions: int
    num_scored: int
    wanted_share: float
    before: Constants
    found: Constants
    aspects: Mapping[str, Moments]
    additions: Mapping[str, Addition]
    shapings: Mapping[str, ShapingChoice]
    holistic_part: Moments
    holistic_at_threshold: float
    holistic_with_length: float
    reward_with_length: float
    faults: Sequence[str]
    normalized: Floats


def calibrate(
    material: Material, recipe: Recipe, scores: Scores, wanted_share: float
) -> CalibrationResult:
    """Estimate mean, std and threshold; raise `StudyError` if the scores do not determine them."""
    raw = values_of(scores.of(recipe.holistic))
    fitted = _constants(raw, wanted_share)
    z = (raw - fitted.mean) / fitted.std
    words = [int(num_words(one.completion_text)) for one in material.samples]
    admitted = np.flatnonzero(z >= fitted.threshold)
    hierarchy = replace(
        recipe.rule_params(Overrides()),
        mean=fitted.mean,
        std=fitted.std,
        threshold=fitted.threshold,
    )
    by_aspect = {name: scores.of(spec) for name, spec in recipe.aspects.items()}
    spreads = {name: _spread(values_of(one)) for name, one in by_aspect.items()}
    calibrated = _with_aspects(recipe, spreads)
    rewards = rewards_of(material.samples, calibrated, scores, hierarchy)
    admitted_by_aspect = {
        name: _scored_and_admitted(one, material.samples, calibrated, name, admitted)
        for name, one in by_aspect.items()
    }
    return CalibrationResult(
        recipe=recipe.name,
        fingerprints=scores.fingerprints,
        num_completions=len(material.samples),
        num_scored=int(np.count_nonzero(~np.isnan(raw))),
        wanted_share=wanted_share,
        before=_constants_of(recipe, raw),
        found=fitted,
        aspects=spreads,
        additions={name: addition(*one) for name, one in admitted_by_aspect.items()},
        shapings={name: shaping_choice(*one) for name, one in admitted_by_aspect.items()},
        holistic_part=_spread(recipe.holistic.weight * z[admitted]),
        holistic_at_threshold=recipe.holistic.weight * fitted.threshold,
        holistic_with_length=correlation(raw, words),
        reward_with_length=correlation(rewards, words),
        faults=scores.faults,
        normalized=z,
    )


def changes_of(result: CalibrationResult, recipe: Recipe) -> dict[str, Change]:
    """Return the constants to write: the holistic ones, and those of normalized aspects."""
    over = f"over {result.num_scored} completions, by alarm calibrate"
    changes = {
        "holistic.mean": _change(result.found.mean, over),
        "holistic.std": _change(result.found.std, over),
        "hierarchy.threshold": _change(
            result.found.threshold, f"admits {result.found.admitted_share:.1%} of them"
        ),
    }
    for name in recipe.aspects:
        own = result.aspects[name]
        if _is_normalized(recipe, name, own):
            over = f"over {own.count} completions, by alarm calibrate"
            changes[f"aspects.{name}.mean"] = _change(own.mean, over)
            changes[f"aspects.{name}.std"] = _change(own.std, over)
    return changes


def _is_normalized(recipe: Recipe, name: str, own: Moments) -> bool:
    """Whether an aspect gets a mean and a standard deviation.

    That is so if it scores whole completions and its table has one of them. Others, such as
    probabilities, are used as they are.
    """
    spec = recipe.aspects[name]
    is_whole = recipe.models[spec.model].judges_wholes
    has_constants = bool({"mean", "std"} & spec.model_fields_set)
    return is_whole and has_constants and own.count > 0 and own.std > 0


def _with_aspects(recipe: Recipe, spreads: Mapping[str, Moments]) -> Recipe:
    """Return the recipe with the constants of normalized aspects that `changes_of` writes."""
    aspects = {
        name: spec.model_copy(update={"mean": spreads[name].mean, "std": spreads[name].std})
        if _is_normalized(recipe, name, spreads[name])
        else spec
        for name, spec in recipe.aspects.items()
    }
    return recipe.model_copy(update={"aspects": aspects})


def _change(value: float, reason: str) -> Change:
    if 0 < abs(value) < _SMALL:
        return Change(float(f"{value:.{_DIGITS}g}"), reason)
    return Change(round(value, _DIGITS), reason)


def _constants(raw: Floats, wanted_share: float) -> Constants:
    try:
        fitted = moments(raw)
        admission = admission_for((raw - fitted.mean) / (fitted.std or 1.0), wanted_share)
    except ValueError as error:
        raise StudyError(f"the holistic model cannot be calibrated: {error}") from error
    return Constants(fitted.mean, fitted.std, admission.threshold, admission.share)


def _constants_of(recipe: Recipe, raw: Floats) -> Constants:
    mean, std, threshold = recipe.holistic.mean, recipe.holistic.std, recipe.hierarchy.threshold
    return Constants(mean, std, threshold, admitted_share((raw - mean) / std, threshold))


def _spread(values: Floats) -> Moments:
    known = values[~np.isnan(values)]
    if not len(known):
        return Moments(float("nan"), float("nan"), 0)
    return Moments(float(known.mean()), float(known.std()), len(known))


def _scored_and_admitted(
    scores: Sequence[Score | None],
    samples: Sequence[Sample],
    recipe: Recipe,
    name: str,
    admitted: Indices,
) -> tuple[list[Score], list[str], AspectRule, float]:
    """Return an aspect's scores and texts of admitted completions, its rule and its weight."""
    known = [(scores[index], samples[index].completion_text) for index in admitted]
    return (
        [score for score, _ in known if score is not None],
        [text for score, text in known if score is not None],
        recipe.aspect_rule(name, None),
        recipe.aspects[name].weight or 1.0,
    )


def calibration_page(result: CalibrationResult) -> Page:
    """Build the report: constants, what each aspect adds, and correlations with length."""
    blocks: list[Paragraph | Grid | Picture] = [
        Paragraph(
            f"{result.num_completions} completions; the holistic model scored "
            f"{result.num_scored} of them. Models: {fingerprints(result.fingerprints)}."
        )
    ]
    blocks += [Paragraph(fault, is_caution=True) for fault in result.faults]
    blocks.append(_constants_table(result))
    blocks.append(
        Picture(
            "holistic",
            "Normalized holistic scores. Past the threshold, aspects are added.",
            lambda: distributions(
                {"holistic, normalized": {"": result.normalized}}, result.found.threshold
            ),
        )
    )
    if result.aspects:
        blocks += _aspects(result)
    return Page(f"Calibration of {result.recipe}", blocks)


def _constants_table(result: CalibrationResult) -> Grid:
    before, fitted = result.before, result.found
    rows = [
        ("mean", plain(before.mean), plain(fitted.mean)),
        ("std", plain(before.std), plain(fitted.std)),
        ("threshold", plain(before.threshold), plain(fitted.threshold)),
        ("admitted", percent(before.admitted_share), percent(fitted.admitted_share)),
    ]
    return Grid(
        "Constants",
        ("", f"in {result.recipe}", "calibrated"),
        rows,
        f"Wanted: {percent(result.wanted_share)} admitted. The threshold is in standard "
        "deviations, halfway between two scores.",
    )


def _aspects(result: CalibrationResult) -> Iterator[Grid | Paragraph]:
    yield Grid(
        "Scores of aspects",
        ("", "mean", "std", "count"),
        [
            (name, plain(one.mean), plain(one.std), str(one.count))
            for name, one in result.aspects.items()
        ],
        "For segments: the share of right ones in a completion.",
    )
    yield Grid(
        "What aspects add to an admitted completion",
        ("", "right", "wrong", "segments", "adds", "std", "if all wrong", "r length", "r score"),
        [_row(name, one) for name, one in result.additions.items()],
        "Shaped and weighted (a weight of 0 is taken as 1). r is the correlation of the addition "
        "with the number of segments (or of words, if whole completions are scored) and with the "
        "score.",
    )
    for name, one in result.additions.items():
        if one.num_completions:
            yield Paragraph(f"{name}: {one.explained()}.", is_caution=one.is_length_bonus)
    yield Grid(
        "Shapings of aspects",
        ("", "shaping", "r segments", "r words", "pairs in order"),
        [
            (name, str(fit.shaping), plain(fit.with_segments), plain(fit.with_words),
             percent(fit.ranking))
            for name, one in result.shapings.items()
            for fit in one.fits
        ],
        "r is the correlation, over admitted completions, of the shaped reward with the number of "
        "segments or words. A pair of completions is in order if the shaped reward is higher for "
        "the one whose unshaped values have the higher mean.",
    )  # fmt: skip
    for name, choice in result.shapings.items():
        if choice.num_completions:
            is_other = choice.recommended not in (None, choice.current)
            yield Paragraph(f"{name}: {choice.explained()}.", is_caution=is_other)
    yield Paragraph(
        f"The holistic term of an admitted completion is {plain(result.holistic_part.mean)} "
        f"(std {plain(result.holistic_part.std)}), and "
        f"{plain(result.holistic_at_threshold)} at the "
        "threshold, where the aspects' additions are the jump of the reward."
    )
    yield Paragraph(
        f"Over all completions, the correlation with the number of words is "
        f"{plain(result.holistic_with_length)} for the holistic score and "
        f"{plain(result.reward_with_length)} for the total reward."
    )


def _row(name: str, one: Addition) -> tuple[str, ...]:
    return (
        name,
        plain(one.right),
        plain(one.wrong),
        "–" if one.mean_segments is None else f"{one.mean_segments:.1f}",
        plain(one.mean),
        plain(one.std),
        "–" if one.unearned is None else percent(one.unearned),
        plain(one.with_length),
        plain(one.with_score),
    )
