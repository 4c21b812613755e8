"""A rule's name and constants, and the sum that the paper's rules are: pure arithmetic.

    z = (h - mean) / std
    z <  threshold:  r[t] = W*z*1[t = last]
    z >= threshold:  r[t] = W*z*1[t = last] + sum_k w_k * a_k[t]

(Lai et al. 2024, Figure 1; halfrot/ALaRM, ``train_ppo.py``; ``a_k`` is shaped before it gets here.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "Hierarchy",
    "Rule",
    "combine",
    "counts_aspects",
    "is_admitted",
    "needs_aspect",
    "needs_reference",
    "normalize",
]


class Rule(StrEnum):
    """How holistic reward and aspects are combined."""

    HIERARCHICAL = "hierarchical"
    WEIGHTED_SUM = "weighted_sum"
    HOLISTIC_ONLY = "holistic_only"
    ASPECT_ONLY = "aspect_only"
    SOFT_GATE = "soft_gate"
    CASCADE = "cascade"
    VETO = "veto"
    PRODUCT = "product"
    MINIMUM = "minimum"
    PAR = "par"
    LOG_SIGMOID = "log_sigmoid"
    GDPO = "gdpo"
    MO_GRPO = "mo_grpo"


#: The rules in which an aspect may decide without a weight, by its minimum.
_GATING = (Rule.CASCADE, Rule.VETO)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A rule with its constants; ``weights`` holds one weight an aspect.

    What follows ``weights`` are the constants of single rules; a recipe names those that its rule
    wants. ``minimums`` holds what the level of an aspect must reach, ``order`` the aspects by
    priority, ``group_size`` how many samples a group has.
    """

    rule: Rule
    threshold: float
    holistic_weight: float
    mean: float
    std: float
    weights: Mapping[str, float]
    temperature: float = 1.0
    floor: float = 0.0
    minimums: Mapping[str, float] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    group_size: int | None = None


def normalize(score: float, hierarchy: Hierarchy) -> float:
    """Return ``z``, the holistic score in standard deviations from its mean."""
    return (score - hierarchy.mean) / hierarchy.std


def is_admitted(z: float, hierarchy: Hierarchy) -> bool:
    """Say whether a sample is past the threshold; equality is."""
    return z >= hierarchy.threshold


def counts_aspects(z: float, hierarchy: Hierarchy) -> bool:
    """Say whether the aspects of a sample with this ``z`` count for its reward."""
    match hierarchy.rule:
        case Rule.HIERARCHICAL | Rule.CASCADE:
            return is_admitted(z, hierarchy)
        case Rule.HOLISTIC_ONLY:
            return False
        case _:
            return True


def needs_aspect(name: str, hierarchy: Hierarchy) -> bool:
    """Say whether the rule looks at an aspect where aspects count: by its weight or its minimum."""
    gates = hierarchy.rule in _GATING and name in hierarchy.minimums
    return gates or hierarchy.weights[name] != 0


def needs_reference(hierarchy: Hierarchy) -> bool:
    """Say whether the rule compares with a reference completion."""
    return hierarchy.rule is Rule.PAR


def combine(
    z: float, aspects: Mapping[str, Sequence[float]], hierarchy: Hierarchy, num_tokens: int
) -> tuple[float, ...]:
    """Return the sum that the rule counts, a token: ``[num_tokens]``.

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
