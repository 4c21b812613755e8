"""`alarm evaluate`: policies against each other by every reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alarm_models.recipe import Recipe
from alarm_models.study.bootstrap import Resampling
from alarm_models.study.comparison import Comparison, compare
from alarm_models.study.pairs import Floats
from alarm_service.study.columns import Column
from alarm_service.study.material import Material
from alarm_service.study.scores import Scores

__all__ = ["EvaluationResult", "evaluate"]


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
