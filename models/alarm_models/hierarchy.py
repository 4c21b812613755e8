"""The rules that make one reward of a holistic score and its aspects: pure arithmetic.

    z = (h - mean) / std
    z <  threshold:  r[t] = W*z*1[t = last]
    z >= threshold:  r[t] = W*z*1[t = last] + sum_k w_k * a_k[t]

(Lai et al. 2024, Figure 1; halfrot/ALaRM, ``train_ppo.py``; ``a_k`` is shaped before it gets here.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Hierarchy", "Rule", "combine", "counts_aspects", "normalize"]


class Rule(StrEnum):
    """How holistic reward and aspects are combined."""

    HIERARCHICAL = "hierarchical"
    WEIGHTED_SUM = "weighted_sum"
    HOLISTIC_ONLY = "holistic_only"
    ASPECT_ONLY = "aspect_only"


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A rule with its constants; ``weights`` holds one weight an aspect."""

    rule: Rule
    threshold: float
    holistic_weight: float
    mean: float
    std: float
    weights: Mapping[str, float]


def normalize(score: float, hierarchy: Hierarchy) -> float:
    """Return ``z``, the holistic score in standard deviations from its mean."""
    return (score - hierarchy.mean) / hierarchy.std


def is_admitted(z: float, hierarchy: Hierarchy) -> bool:
    """Say whether a sample is past the threshold; equality is."""
    return z >= hierarchy.threshold


def counts_aspects(z: float, hierarchy: Hierarchy) -> bool:
    """Say whether the rule adds aspects to the reward of a sample with this ``z``."""
    match hierarchy.rule:
        case Rule.HIERARCHICAL:
            return is_admitted(z, hierarchy)
        case Rule.HOLISTIC_ONLY:
            return False
        case Rule.WEIGHTED_SUM | Rule.ASPECT_ONLY:
            return True


def combine(
    z: float, aspects: Mapping[str, Sequence[float]], hierarchy: Hierarchy, num_tokens: int
) -> tuple[float, ...]:
    """Return the reward of each token, ``[num_tokens]``.

    ``aspects`` holds the shaped rewards of the aspects that have a weight, ``[num_tokens]`` each;
    they are added where the rule counts them. A scalar reward is the case of one token.
    """
    rewards = [0.0] * num_tokens
    if counts_aspects(z, hierarchy):
        for name, values in aspects.items():
            for index, value in enumerate(values):
                rewards[index] += hierarchy.weights[name] * value
    if rewards and hierarchy.rule is not Rule.ASPECT_ONLY:
        rewards[-1] += hierarchy.holistic_weight * z
    return tuple(rewards)
