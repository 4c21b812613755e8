"""What is compared in a study: one number a completion from each reward, baseline and figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import AspectSpec
from alarm_models.sample import Score
from alarm_models.study.baselines import BASELINES
from alarm_models.study.pairs import Floats
from alarm_service.study.errors import StudyError
from alarm_service.study.material import Material
from alarm_service.study.scores import Scores

__all__ = ["HOLISTIC", "Column", "columns_of", "require_names", "values_of"]

HOLISTIC = "holistic"


@dataclass(frozen=True, slots=True)
class Column:
    """A name and its values ``[completions]``, NaN where missing, greater for better or lower."""

    name: str
    values: Floats
    is_lower_better: bool
    is_aspect: bool = False

    @property
    def oriented(self) -> Floats:
        """The values with the better greater."""
        return -self.values if self.is_lower_better else self.values


def columns_of(
    material: Material, recipe: Recipe, scores: Scores, lower: Collection[str]
) -> list[Column]:
    """Return the holistic column, the recipe's aspects, the file's own values and the baselines.

    An aspect's value is its model's raw score, for segments the share of right ones, as in the
    paper's figures. ``lower`` names those of which less is better, beside the aspects whose
    reward falls as the score rises. A baseline gives way to an aspect or value of its name.
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
    """Raise `StudyError` for names that clash or that nothing has, before anything is scored."""
    rewards = [HOLISTIC, *recipe.aspects]
    for name in material.values:
        if name in rewards:
            raise StudyError(f"values.{name} has the name of a reward of recipe {recipe.name!r}")
    names = list(dict.fromkeys([*rewards, *material.values, *BASELINES]))
    unknown = sorted(set(lower) - set(names))
    if unknown:
        raise StudyError(f"--lower names {unknown}; there are {', '.join(names)}")


def values_of(scores: Sequence[Score | None]) -> Floats:
    """Return the scores' values, NaN where there is none."""
    return np.array(
        [math.nan if one is None or one.value is None else one.value for one in scores], dtype=float
    )


def _falls(recipe: Recipe, spec: AspectSpec) -> bool:
    """Say whether the aspect's reward falls as its score rises."""
    if recipe.models[spec.model].kind == "segments":
        slope = spec.positive - spec.negative
    else:
        slope = spec.scale
    return slope * (spec.weight or 1.0) < 0
