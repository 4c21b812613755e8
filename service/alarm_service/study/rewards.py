"""What training would have given each completion, by a recipe's rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alarm_models.assembly import AspectRule, aspect_reward, assemble
from alarm_models.hierarchy import Hierarchy, counts_aspects, normalize
from alarm_models.recipe import Recipe
from alarm_models.sample import Sample, Score
from alarm_models.study.pairs import Floats
from alarm_service.study.scores import Scores

__all__ = ["rewards_of"]


def rewards_of(
    samples: Sequence[Sample], recipe: Recipe, scores: Scores, hierarchy: Hierarchy
) -> Floats:
    """Return each sample's reward, NaN where a score that it needs is missing: ``[samples]``."""
    rules = {name: spec.rule(None) for name, spec in recipe.aspects.items()}
    holistic = scores.by_model[recipe.holistic.model]
    aspects = {name: scores.by_model[spec.model] for name, spec in recipe.aspects.items()}
    return np.array(
        [
            _reward(sample, holistic[index], {name: one[index] for name, one in aspects.items()},
                    rules, hierarchy)
            for index, sample in enumerate(samples)
        ],
        dtype=float,
    )  # fmt: skip


def _reward(
    sample: Sample,
    holistic: Score | None,
    aspects: dict[str, Score | None],
    rules: dict[str, AspectRule],
    hierarchy: Hierarchy,
) -> float:
    if holistic is None or holistic.value is None:
        return math.nan
    is_counted = counts_aspects(normalize(holistic.value, hierarchy), hierarchy)
    if is_counted and any(one is None and hierarchy.weights[name] for name, one in aspects.items()):
        return math.nan
    rewarded = {
        name: None if one is None else aspect_reward(one, rules[name], sample)
        for name, one in aspects.items()
    }
    return assemble(sample, holistic, rewarded, hierarchy).reward
