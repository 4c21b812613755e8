"""Rules that look at one sample at a time. To add one, write a function here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter

from alarm_models.combination.rule_registry import (
    HOLISTIC,
    ROUNDING,
    AspectsCount,
    RuleInputs,
    RuleParams,
    is_admitted,
    on_last_token,
    require_no_negative_weight,
    require_positive_weight,
    sample_rule,
    sigmoid,
)
from alarm_models.errors import SampleError

__all__ = [
    "aspect_only",
    "capo",
    "cascade",
    "conditioned",
    "gear",
    "hierarchical",
    "holistic_only",
    "log_sigmoid",
    "minimum",
    "par",
    "product",
    "rubric",
    "soft_gate",
    "sum_of_counted",
    "uncertainty",
    "veto",
    "weighted_sum",
]

_ALARM = "ALaRM, arXiv 2403.06754"


@sample_rule(
    "hierarchical",
    summary="Below the threshold the holistic reward alone; at or above it, the aspects too.",
    reward="`W z` on the last token; from `threshold` on `+ sum w_k a_k[t]`",
    source=_ALARM,
    accepts=("threshold",),
    aspects=AspectsCount.WHEN_ADMITTED,
    adds_up=True,
    can_spread_holistic=True,
)
def hierarchical(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]``, with the sum only for admitted samples.

    Lai et al. 2024 (arXiv 2403.06754), Figure 1; the three rules below are its baselines.
    """
    return sum_of_counted(inputs, params)


@sample_rule(
    "weighted_sum",
    summary="The holistic reward and all aspects, for every sample.",
    reward="`W z` on the last token `+ sum w_k a_k[t]`",
    source=_ALARM,
    adds_up=True,
    can_spread_holistic=True,
)
def weighted_sum(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]``."""
    return sum_of_counted(inputs, params)


@sample_rule(
    "holistic_only",
    summary="The holistic reward alone.",
    reward="`W z` on the last token",
    source=_ALARM,
    aspects=AspectsCount.NEVER,
    adds_up=True,
    can_spread_holistic=True,
)
def holistic_only(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last]``."""
    return sum_of_counted(inputs, params)


@sample_rule(
    "aspect_only",
    summary="The aspects alone.",
    reward="`sum w_k a_k[t]`",
    source=_ALARM,
    adds_up=True,
    uses_holistic=False,
    can_spread_holistic=True,
)
def aspect_only(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``sum_k w_k*a_k[t]``."""
    return tuple(_sum_of_aspects(inputs, params, dict.fromkeys(inputs.aspects, 1.0)))


@sample_rule(
    "soft_gate",
    summary="Aspects count more the further the holistic score is past the threshold.",
    reward="`W z` on the last token `+ s((z - threshold) / temperature) sum w_k a_k[t]`",
    source="ours: no jump at the threshold",
    requires=("temperature",),
    accepts=("threshold",),
    can_spread_holistic=True,
)
def soft_gate(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + s((z - threshold)/temperature) * sum_k w_k*a_k[t]``.

    A continuous form of the paper's gate, so that no reward jumps at the threshold. At the
    threshold, aspects count half. As the temperature approaches 0, the rule approaches
    `hierarchical`.
    """
    gate = sigmoid((inputs.z - params.threshold) / params.temperature)
    return _sum(inputs, params, inputs.aspects, scale=gate)


@sample_rule(
    "cascade",
    summary="Aspects count in order, up to the first that misses its minimum.",
    reward="`W z`, then the aspects of `order` until one misses its minimum, then all others",
    source="G-RA, August 2025",
    requires=("order", "minimums"),
    accepts=("threshold",),
    aspects=AspectsCount.WHEN_ADMITTED,
    can_spread_holistic=True,
)
def cascade(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return the sum of the parts before the first closed gate, and of that gate itself.

    ``R = sum_k m_k*w_k*a_k``, where ``m_k`` is 1 if every part of a higher priority reaches its
    minimum. The holistic score comes first, and its minimum is the threshold; then the aspects of
    ``order``; then all others together. Source: the gates of G-RA (Sun et al., August 2025).
    """
    counted: set[str] = set()
    for name in params.order:
        counted.add(name)
        if not inputs.passes(name, params):
            break
    else:
        counted.update(inputs.aspects)
    return _sum(inputs, params, counted)


@sample_rule(
    "veto",
    summary="If an aspect misses its minimum, the sample gets the floor and nothing else.",
    reward="`floor` on the last token where an aspect misses its minimum, else the weighted sum",
    source="Rubicon, arXiv 2508.12790",
    requires=("floor", "minimums"),
    can_spread_holistic=True,
)
def veto(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``floor`` on the last token if an aspect misses its minimum, else the weighted sum.

    Source: the veto of critical rubrics in Rubicon (Huang et al. 2025, arXiv 2508.12790).
    """
    if all(inputs.passes(name, params) for name in params.minimums):
        return sum_of_counted(inputs, params)
    return on_last_token(params.floor, inputs.num_tokens)


@sample_rule(
    "product",
    summary="The product of all parts: one low part makes the reward low.",
    reward="`s(z)^W prod v_k^w_k` on the last token",
    source="arXiv 2511.09158",
)
def product(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``s(z)^W * prod_k v_k^w_k``, where ``v_k`` is an aspect's shaped value.

    An aspect counts only to the extent that the outcome is right: the multiplicative form of
    "explicit dependency" (arXiv 2511.09158). Raises `SampleError` for a negative value, and for a
    zero with a negative weight.
    """
    value = sigmoid(inputs.z) ** params.holistic_weight
    for weight, aspect in inputs.weighted(params):
        if aspect.value is None:
            continue
        if aspect.value < 0 or (aspect.value == 0 and weight < 0):
            raise SampleError(
                "non_finite",
                f"rule `product` cannot raise {aspect.value:g} to the weight {weight:g}: set the "
                'aspect\'s shaping to "sigmoid", or choose constants that keep its value positive',
            )
        value *= aspect.value**weight
    return on_last_token(value, inputs.num_tokens)


@sample_rule(
    "minimum",
    summary="The worst part is the reward.",
    reward="`min(W z, w_k v_k)` on the last token",
    source="arXiv 2310.02743",
)
def minimum(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``min(W*z, w_1*v_1, ...)``, where ``v_k`` is an aspect's shaped value.

    Source: worst-case optimization over reward models (Coste et al. 2023, arXiv 2310.02743), which
    assumes one scale for all: aspects then need shaping "none" and suitable constants.
    """
    values = [
        weight * aspect.value
        for weight, aspect in inputs.weighted(params)
        if aspect.value is not None
    ]
    return on_last_token(min([params.holistic_weight * inputs.z, *values]), inputs.num_tokens)


@sample_rule(
    "par",
    summary="The holistic reward is the bounded advantage of the completion over a reference.",
    reward="`W s(z - z_ref)` on the last token `+ sum w_k a_k[t]`",
    source="PAR, arXiv 2502.18770",
    needs_reference=True,
)
def par(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*s(z - z_ref)*1[t = last] + sum_k w_k*a_k[t]``.

    ``z_ref`` is the score of a reference completion of the same prompt. The reward is bounded, and
    one half if the completion is as good as the reference. Source: preference as
    reward, PAR (Fu et al. 2025, arXiv 2502.18770). Raises `SampleError` without a reference.
    """
    if inputs.reference_z is None:
        raise SampleError(
            "invalid_sample",
            "rule `par` compares with a reference: send its text in the sample's "
            "`fields.reference`",
        )
    preferred = replace(inputs, z=sigmoid(inputs.z - inputs.reference_z), spread_z=None)
    return _sum(preferred, params, inputs.aspects)


@sample_rule(
    "log_sigmoid",
    summary="Low scores weigh more than high ones.",
    reward="`W log s(z) + sum w_k log s(level_k)` on the last token",
    source="arXiv 2402.00742",
)
def log_sigmoid(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*log s(z) + sum_k w_k*log s(level_k)``.

    A soft logical AND: all are above their means. ``z`` and the levels are centered by ``mean``.
    Source: Wang et al. 2024 (ICML, arXiv 2402.00742), where the mean is a reference's
    score.
    """
    value = params.holistic_weight * _log_sigmoid(inputs.z)
    for weight, aspect in inputs.weighted(params):
        if aspect.level is not None:
            value += weight * _log_sigmoid(aspect.level)
    return on_last_token(value, inputs.num_tokens)


@sample_rule(
    "rubric",
    summary="The share of a rubric's weight that is met; pitfalls have negative weights.",
    reward="`clip(sum w_k v_k / sum_(w_k > 0) w_k, 0, 1)` on the last token",
    source="RaR, arXiv 2507.17746",
    validate=require_positive_weight,
    uses_holistic=False,
)
def rubric(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``clip(sum_k w_k*v_k / sum_k max(w_k, 0), 0, 1)`` on the last token.

    Each aspect is a criterion, and its value ``v_k`` in [0, 1] says to what extent it is met. A
    criterion that judged nothing is left out of both sums. Source: the explicit aggregation of
    Rubrics as Rewards (Gunjal et al. 2025, arXiv 2507.17746). Raises `SampleError` for a value
    outside [0, 1], and if no criterion with a positive weight was judged.
    """
    met = {
        name: _fraction(name, aspect.value, params)
        for name, aspect in inputs.aspects.items()
        if params.weights[name] != 0 and aspect.value is not None
    }
    total = _positive_weight(met, params)
    value = sum(params.weights[name] * fraction for name, fraction in met.items()) / total
    return on_last_token(min(max(value, 0.0), 1.0), inputs.num_tokens)


@sample_rule(
    "conditioned",
    summary="An aspect counts only where the aspects that it requires reach their levels.",
    reward="`W z` on the last token `+ sum w_k a_k[t]` over the aspects whose `requires` are met",
    source="GDPO's conditioned rewards, arXiv 2601.05242",
    aspect_keys=("requires",),
    can_spread_holistic=True,
)
def conditioned(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]`` over the aspects whose requirements are met.

    An easy reward then cannot be earned instead of a hard one. A requirement compares the level of
    another aspect, or ``z``. It is met if the other aspect judged nothing. Source: the conditioned
    rewards of GDPO (Liu et al. 2026, arXiv 2601.05242).
    """
    counted = {
        name
        for name in inputs.aspects
        if all(
            inputs.reaches(other, level) for other, level in params.requires.get(name, {}).items()
        )
    }
    return _sum(inputs, params, counted)


@sample_rule(
    "gear",
    summary="An aspect counts as far as its parents in a graph of prerequisites are met.",
    reward="`W z` on the last token `+ sum w_k g_k a_k[t] / sum_(w_k > 0) w_k`, where `g_k` is the "
    "product over the parents `j` of `q_j + (1 - q_j) lambda_jk`, and `q_k = g_k v_k`",
    source="GEAR, arXiv 2606.03361",
    accepts=("threshold",),
    aspect_keys=("parents",),
    validate=require_positive_weight,
    can_spread_holistic=True,
)
def gear(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*g_k*a_k[t] / sum_k max(w_k, 0)``.

    ``g_k`` is the product over an aspect's parents of ``q_j + (1 - q_j)*lambda_jk``, and ``q_k =
    v_k*g_k``. The holistic score may be a parent, and its ``q`` is 1 from the threshold on, else 0.
    Aspects that judged nothing are left out of both sums, and as parents count as met. With
    ``W = 0`` this is GEAR (arXiv 2606.03361); with the holistic score as the only parent,
    ``lambda`` 0, and positive weights that sum to 1, it is `hierarchical`. Raises `SampleError` for
    a parent's value outside [0, 1], and if no aspect with a positive weight was judged.
    """
    judged = {
        name
        for name, aspect in inputs.aspects.items()
        if params.weights[name] != 0 and aspect.value is not None
    }
    total = _positive_weight(judged, params)
    gates = _gates(inputs, params)
    return _scaled_sum(inputs, params, {name: gates.get(name, 1.0) / total for name in judged})


def _gates(inputs: RuleInputs, params: RuleParams) -> dict[str, float]:
    """Return ``g_k`` of the aspects that have parents or are parents."""
    all_parents = {parent for parents in params.parents.values() for parent in parents}
    gates: dict[str, float] = {}
    met = {HOLISTIC: float(is_admitted(inputs.z, params))}
    for name in TopologicalSorter(params.parents).static_order():
        if name == HOLISTIC:
            continue
        gates[name] = math.prod(
            met[parent] + (1 - met[parent]) * share
            for parent, share in params.parents.get(name, {}).items()
        )
        if name in all_parents:
            aspect = inputs.aspects.get(name)
            value = None if aspect is None else aspect.value
            met[name] = gates[name] * (1.0 if value is None else _fraction(name, value, params))
    return gates


@sample_rule(
    "uncertainty",
    summary="The mean of several scores of the same thing, less for scores that disagree.",
    reward="`mean - beta std` of `z` and the `v_k`, weighted by `W` and `w_k`, on the last token; "
    "none where `std > max_deviation`",
    source="reward ensembles, arXiv 2310.02743; UARM, arXiv 2606.19818",
    requires=("beta",),
    accepts=("max_deviation",),
    validate=require_no_negative_weight,
)
def uncertainty(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return the scores' mean less ``beta`` times their standard deviation, on the last token.

    The scores are ``z`` and the aspects' values, which must be on one scale: the heads of a model,
    or several models. Mean and (population) deviation are weighted; with equal weights they are
    the plain ones. Raises `SampleError` if fewer than two were judged (``invalid_sample``) and if
    the deviation exceeds ``max_deviation`` (``dropped``).
    """
    scores = [(params.holistic_weight, inputs.z)] if params.holistic_weight else []
    scores += [
        (weight, aspect.value)
        for weight, aspect in inputs.weighted(params)
        if aspect.value is not None
    ]
    if len(scores) < 2:
        raise SampleError(
            "invalid_sample",
            f"rule `uncertainty` compares scores, but the sample has {len(scores)}: give a weight "
            "to two or more of the holistic score and the aspects that judge this completion",
        )
    total = sum(weight for weight, _ in scores)
    mean = sum(weight * score for weight, score in scores) / total
    variance = sum(weight * (score - mean) ** 2 for weight, score in scores) / total
    deviation = math.sqrt(variance)
    if params.max_deviation is not None and deviation > params.max_deviation:
        raise SampleError(
            "dropped",
            f"the scores' standard deviation is {deviation:g}, above hierarchy.max_deviation "
            f"{params.max_deviation:g}: they disagree too much for a reward",
        )
    return on_last_token(mean - params.beta * deviation, inputs.num_tokens)


@sample_rule(
    "capo",
    summary="Every token gets the outcome, less a penalty on tokens of steps judged wrong.",
    reward="`W z + sum w_k a_k[t]` on every token `t`",
    source="CAPO, arXiv 2508.02298",
    uses_length=True,
)
def capo(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z + sum_k w_k*a_k[t]`` on every token.

    With an aspect that is placed on tokens and gives -1 to those of wrong steps and 0 to others,
    this is ``outcome - w_k * 1[t in wrong steps]``. Source: CAPO (Xie et al. 2025, arXiv
    2508.02298). Raises `SampleError` for a sample without tokens, whose reward is not defined.
    """
    if inputs.length_is_in_words:
        raise SampleError(
            "invalid_sample", "rule `capo` rewards each token: send the sample's token_offsets"
        )
    outcome = params.holistic_weight * inputs.z
    penalties = _sum_of_aspects(inputs, params, dict.fromkeys(inputs.aspects, 1.0))
    return tuple(outcome + penalty for penalty in penalties)


def _positive_weight(judged: Collection[str], params: RuleParams) -> float:
    total = sum(max(params.weights[name], 0.0) for name in judged)
    if total == 0:
        raise SampleError(
            "invalid_sample",
            f"rule `{params.rule}` divides by the positive weights of the aspects that judged "
            "something, and there is none: the completion has nothing that these aspects judge",
        )
    return total


def _fraction(name: str, value: float, params: RuleParams) -> float:
    """Return an aspect's value; raise `SampleError` unless it is in [0, 1] but for rounding."""
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise SampleError(
            "non_finite",
            f"rule `{params.rule}` requires values in [0, 1], but aspect {name} has {value}: set "
            'its shaping to "sigmoid", or positive, negative, mean, std, scale and bias so that '
            "its value stays in [0, 1]",
        )
    return min(max(value, 0.0), 1.0)


def sum_of_counted(inputs: RuleInputs, params: RuleParams) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]`` over the aspects that count."""
    return _sum(inputs, params, inputs.aspects)


def _sum(
    inputs: RuleInputs, params: RuleParams, names: Collection[str], scale: float = 1.0
) -> tuple[float, ...]:
    """Return ``W*z`` on its tokens plus ``scale * sum_k w_k*a_k[t]`` over the named aspects."""
    return _scaled_sum(inputs, params, dict.fromkeys(names, scale))


def _scaled_sum(
    inputs: RuleInputs, params: RuleParams, scales: Mapping[str, float]
) -> tuple[float, ...]:
    """Return ``W*z`` on its tokens plus ``sum_k w_k*scale_k*a_k[t]`` over the named aspects."""
    rewards = _sum_of_aspects(inputs, params, scales)
    if inputs.spread_z is not None:
        parts = zip(rewards, inputs.spread_z, strict=True)
        return tuple(reward + params.holistic_weight * part for reward, part in parts)
    if rewards:
        rewards[-1] += params.holistic_weight * inputs.z
    return tuple(rewards)


def _sum_of_aspects(
    inputs: RuleInputs, params: RuleParams, scales: Mapping[str, float]
) -> list[float]:
    """Return ``sum_k w_k*scale_k*a_k[t]`` over the named aspects that have a weight."""
    rewards = [0.0] * inputs.num_tokens
    for name, aspect in inputs.aspects.items():
        weight = params.weights[name]
        if name in scales and weight != 0:
            for index, reward in enumerate(aspect.rewards):
                rewards[index] += weight * (scales[name] * reward)
    return rewards


def _log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))
