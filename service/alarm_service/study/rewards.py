"""What training would have given each completion, by a recipe's rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alarm_models.assembly import Scored, aspect_reward, assemble
from alarm_models.hierarchy import Hierarchy, counts_aspects, needs_aspect, normalize
from alarm_models.recipe import Recipe
from alarm_models.sample import AspectReward, Reward, Sample, Score
from alarm_models.study.pairs import Floats
from alarm_service.study.scores import Scores

__all__ = ["rewards_of"]


def rewards_of(
    samples: Sequence[Sample], recipe: Recipe, scores: Scores, hierarchy: Hierarchy
) -> Floats:
    """Return each sample's reward, NaN where a score that it needs is missing: ``[samples]``."""
    holistic = scores.of(recipe.holistic)
    aspects = {name: _rewarded(samples, recipe, scores, name) for name in recipe.aspects}
    scored: dict[int, Scored] = {}
    for index, sample in enumerate(samples):
        score, own = holistic[index], {name: one[index] for name, one in aspects.items()}
        if score is not None and _is_complete(score, own, hierarchy):
            scored[index] = Scored(sample, score, own)
    rewards = np.full(len(samples), np.nan)
    for index, reward in zip(scored, assemble(list(scored.values()), hierarchy), strict=True):
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


def _is_complete(
    holistic: Score, aspects: Mapping[str, AspectReward | None], hierarchy: Hierarchy
) -> bool:
    if holistic.value is None:
        return False
    if not counts_aspects(normalize(holistic.value, hierarchy), hierarchy):
        return True
    return all(
        one is not None or not needs_aspect(name, hierarchy) for name, one in aspects.items()
    )
