"""Rules of single samples: their names, parameters, shaping and formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from alarm_models.errors import SampleError

__all__ = [
    "SHAPINGS",
    "AspectInput",
    "Rule",
    "RuleInputs",
    "RuleParams",
    "Shaping",
    "aspects_apply",
    "cascade",
    "hierarchical_sum",
    "is_admitted",
    "log_sigmoid",
    "minimum",
    "needs_aspect",
    "needs_reference",
    "normalize",
    "on_last_token",
    "par",
    "product",
    "sigmoid",
    "soft_gate",
    "sum_of_counted",
    "veto",
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
class RuleParams:
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


def normalize(score: float, hierarchy: RuleParams) -> float:
    """Return ``z``, the holistic score in standard deviations from its mean."""
    return (score - hierarchy.mean) / hierarchy.std


def is_admitted(z: float, hierarchy: RuleParams) -> bool:
    """Say whether a sample is past the threshold; equality is."""
    return z >= hierarchy.threshold


def aspects_apply(z: float, hierarchy: RuleParams) -> bool:
    """Say whether the aspects of a sample with this ``z`` count for its reward."""
    match hierarchy.rule:
        case Rule.HIERARCHICAL | Rule.CASCADE:
            return is_admitted(z, hierarchy)
        case Rule.HOLISTIC_ONLY:
            return False
        case _:
            return True


def needs_aspect(name: str, hierarchy: RuleParams) -> bool:
    """Say whether the rule looks at an aspect where aspects count: by its weight or its minimum."""
    gates = hierarchy.rule in _GATING and name in hierarchy.minimums
    return gates or hierarchy.weights[name] != 0


def needs_reference(hierarchy: RuleParams) -> bool:
    """Say whether the rule compares with a reference completion."""
    return hierarchy.rule is Rule.PAR


def hierarchical_sum(
    z: float, aspects: Mapping[str, Sequence[float]], hierarchy: RuleParams, num_tokens: int
) -> tuple[float, ...]:
    """Return the sum that the rule counts, a token: ``[num_tokens]``.

    ``aspects`` holds the shaped rewards of the aspects that have a weight, ``[num_tokens]`` each;
    they are added where the rule counts them. A scalar reward is the case of one token.
    """
    rewards = [0.0] * num_tokens
    if aspects_apply(z, hierarchy):
        for name, values in aspects.items():
            for index, value in enumerate(values):
                rewards[index] += hierarchy.weights[name] * value
    if rewards and hierarchy.rule is not Rule.ASPECT_ONLY:
        rewards[-1] += hierarchy.holistic_weight * z
    return tuple(rewards)


class Shaping(StrEnum):
    """The shapings that a recipe may name."""

    SIGMOID = "sigmoid"
    NONE = "none"


def sigmoid(value: float) -> float:
    """Return ``1 / (1 + exp(-value))`` without overflow (the paper's shaping)."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)


def _unchanged(value: float) -> float:
    return value


SHAPINGS: Mapping[Shaping, Callable[[float], float]] = {
    Shaping.SIGMOID: sigmoid,
    Shaping.NONE: _unchanged,
}


@dataclass(frozen=True, slots=True)
class AspectInput:
    """What one aspect brings to a sample.

    ``rewards`` are its shaped rewards on the tokens, ``[num_tokens]``. ``value`` is their mean over
    the segments that it judged, or the one reward of the whole completion; ``level`` is the same
    before shaping. Both are None where it judged nothing.
    """

    rewards: Sequence[float]
    value: float | None
    level: float | None


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """What a rule combines of one sample.

    ``aspects`` holds those that count; ``num_tokens`` is one where only a scalar is asked for.
    ``reference_z`` is the normalised holistic score of a reference completion, for rules that
    compare with one; ``group`` is the caller's name for the samples of one prompt.
    """

    z: float
    aspects: Mapping[str, AspectInput]
    num_tokens: int
    reference_z: float | None = None
    group: str | None = None

    def weighted(self, hierarchy: RuleParams) -> Iterator[tuple[float, AspectInput]]:
        """Return the aspects that have a weight, each with its weight."""
        for name, part in self.aspects.items():
            if hierarchy.weights[name] != 0:
                yield hierarchy.weights[name], part

    def passes(self, name: str, hierarchy: RuleParams) -> bool:
        """Say whether an aspect's level reaches its minimum.

        An aspect without a minimum, or that judged nothing, stops nobody.
        """
        part, minimum = self.aspects.get(name), hierarchy.minimums.get(name)
        if part is None or part.level is None or minimum is None:
            return True
        return part.level >= minimum


def on_last_token(value: float, num_tokens: int) -> tuple[float, ...]:
    """Return the rewards of tokens of which the last has it all."""
    return (*[0.0] * (num_tokens - 1), value)


def product(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``s(z)^W * prod_k v_k^w_k``, where ``v_k`` is an aspect's shaped value.

    All must be good for the whole to be: an aspect pays only as far as the outcome is right, the
    multiplicative form of "explicit dependency" (arXiv 2511.09158). Raises `SampleError` for a
    negative value, and for a zero with a negative weight.
    """
    value = sigmoid(parts.z) ** hierarchy.holistic_weight
    for weight, part in parts.weighted(hierarchy):
        if part.value is None:
            continue
        if part.value < 0 or (part.value == 0 and weight < 0):
            raise SampleError(
                "non_finite",
                f"rule `product` cannot raise {part.value:g} to the weight {weight:g}: give the "
                'aspect shaping "sigmoid", or constants that keep it positive',
            )
        value *= part.value**weight
    return on_last_token(value, parts.num_tokens)


def minimum(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``min(W*z, w_1*v_1, ...)``, the pessimist's reward.

    Source: worst-case optimisation over reward models (Coste et al. 2023, arXiv 2310.02743), which
    takes all to be on one scale: aspects then want shaping "none", and constants that make it so.
    """
    values = [
        weight * part.value for weight, part in parts.weighted(hierarchy) if part.value is not None
    ]
    return on_last_token(min([hierarchy.holistic_weight * parts.z, *values]), parts.num_tokens)


def log_sigmoid(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``W*log s(z) + sum_k w_k*log s(level_k)``.

    The log-odds that all are above their means together, so that what is bad weighs more than what
    is good; ``z`` and levels are centred by their ``mean``. Source: Wang et al. 2024 (ICML, arXiv
    2402.00742), where the mean is a reference's score.
    """
    value = hierarchy.holistic_weight * _log_sigmoid(parts.z)
    for weight, part in parts.weighted(hierarchy):
        if part.level is not None:
            value += weight * _log_sigmoid(part.level)
    return on_last_token(value, parts.num_tokens)


def _log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))


def sum_of_counted(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]``, or the part of it that the rule counts.

    Lai et al. 2024 (arXiv 2403.06754), Figure 1, and the three baselines beside it.
    """
    return _sum(parts, hierarchy, parts.z, parts.aspects)


def soft_gate(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + s((z - threshold)/temperature) * sum_k w_k*a_k[t]``.

    The paper's gate made continuous, so that no reward jumps at the threshold: half of the aspects
    counts there, and a temperature towards 0 gives `hierarchical` back. Our own.
    """
    gate = sigmoid((parts.z - hierarchy.threshold) / hierarchy.temperature)
    return _sum(parts, hierarchy, parts.z, parts.aspects, scale=gate)


def cascade(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return the sum of what stands before the first closed gate, and of that gate itself.

    ``R = sum_k m_k*w_k*a_k``, where ``m_k`` is 1 if every aspect of a higher priority reaches its
    minimum. The holistic score comes first, its minimum is the threshold; then the aspects of
    ``order``; then all others together. Source: the gates of G-RA (Sun et al., August 2025).
    """
    counted: set[str] = set()
    is_open = is_admitted(parts.z, hierarchy)
    for name in hierarchy.order:
        if is_open:
            counted.add(name)
            is_open = parts.passes(name, hierarchy)
    if is_open:
        counted.update(parts.aspects)
    return _sum(parts, hierarchy, parts.z, counted)


def veto(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``floor`` on the last token if any aspect misses its minimum, the weighted sum else.

    Source: the veto of critical rubrics in Rubicon (Huang et al. 2025, arXiv 2508.12790).
    """
    if all(parts.passes(name, hierarchy) for name in hierarchy.minimums):
        return sum_of_counted(parts, hierarchy)
    return on_last_token(hierarchy.floor, parts.num_tokens)


def par(parts: RuleInputs, hierarchy: RuleParams) -> tuple[float, ...]:
    """Return ``W*s(z - z_ref)*1[t = last] + sum_k w_k*a_k[t]``.

    ``z_ref`` is the score of a reference completion of the same prompt, so that the reward is
    bounded, and a half where the completion is as good as the reference. Source: preference as
    reward, PAR (Fu et al. 2025, arXiv 2502.18770). Raises `SampleError` without a reference.
    """
    if parts.reference_z is None:
        raise SampleError(
            "invalid_sample",
            "rule `par` compares with a reference: send its text in the sample's "
            "`fields.reference`",
        )
    return _sum(parts, hierarchy, sigmoid(parts.z - parts.reference_z), parts.aspects)


def _sum(
    parts: RuleInputs, hierarchy: RuleParams, z: float, names: Collection[str], scale: float = 1.0
) -> tuple[float, ...]:
    counted = {
        name: [scale * reward for reward in part.rewards]
        for name, part in parts.aspects.items()
        if name in names and hierarchy.weights[name] != 0
    }
    return hierarchical_sum(z, counted, hierarchy, parts.num_tokens)
