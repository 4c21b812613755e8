"""`alarm evaluate`: policies against each other by every reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alarm_models.assembly import aspect_reward, assemble
from alarm_models.recipe import Overrides, Recipe
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.comparison import Comparison, compare
from alarm_models.study.pairs import Floats
from alarm_service.study.columns import Column
from alarm_service.study.material import Material
from alarm_service.study.scores import Scores

__all__ = ["REWARD", "EvaluationResult", "evaluate", "reward_column"]

REWARD = "reward"


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Policies by each reward; ``values`` are every completion's, by reward and policy."""

    recipe: str
    fingerprints: Mapping[str, str]
    policies: Sequence[str]
    num_prompts: int
    num_left_out: int
    resampling: Resampling
    lower_is_better: Sequence[str]
    comparisons: Mapping[str, Comparison]
    faults: Sequence[str]
    values: Mapping[str, Mapping[str, Floats]]


def evaluate(
    material: Material,
    recipe: Recipe,
    columns: Sequence[Column],
    resampling: Resampling,
    scores: Scores,
) -> EvaluationResult:
    """Compare the policies by every column."""
    policies = np.asarray(material.policies)
    return EvaluationResult(
        recipe=recipe.name,
        fingerprints=scores.fingerprints,
        policies=material.policy_names,
        num_prompts=material.num_prompts,
        num_left_out=material.num_left_out,
        resampling=resampling,
        lower_is_better=[one.name for one in columns if one.is_lower_better],
        comparisons={
            one.name: compare(
                one.values,
                material.prompts,
                material.policies,
                is_lower_better=one.is_lower_better,
                resampling=resampling,
            )
            for one in columns
        },
        faults=scores.faults,
        values={
            one.name: {
                name: one.values[policies == index]
                for index, name in enumerate(material.policy_names)
            }
            for one in columns
        },
    )


def reward_column(material: Material, recipe: Recipe, scores: Scores) -> Column:
    """Return the reward that training would have given, by the recipe's own rule."""
    hierarchy = recipe.hierarchy_with(Overrides())
    rules = {name: spec.rule(None) for name, spec in recipe.aspects.items()}
    rewards = []
    for index, sample in enumerate(material.samples):
        holistic = scores.by_model[recipe.holistic.model][index]
        found = {name: scores.by_model[spec.model][index] for name, spec in recipe.aspects.items()}
        lacking = [name for name, one in found.items() if one is None and hierarchy.weights[name]]
        if holistic is None or holistic.value is None or lacking:
            rewards.append(np.nan)
            continue
        aspects = {
            name: None if one is None else aspect_reward(one, rules[name], sample)
            for name, one in found.items()
        }
        rewards.append(assemble(sample, holistic, aspects, hierarchy).reward)
    return Column(REWARD, np.array(rewards, dtype=float), is_lower_better=False)
