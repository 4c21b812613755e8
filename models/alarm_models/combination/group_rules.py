"""Rules that compare the samples of one prompt. To add one, write a function here."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from alarm_models.combination.rule_registry import (
    ROUNDING,
    RuleInputs,
    RuleParams,
    TokenRewards,
    apply_base,
    group_rule,
    require_no_negative_weight,
    require_valid_base,
    validate_group_members,
)
from alarm_models.errors import RecipeError, SampleError, quoted

__all__ = ["dro", "dvao", "gdpo", "gr3", "mo_grpo", "qglas", "validate_group_members"]

#: Avoids a division by zero if a component is equal for the whole group (as in TRL and verl).
_EPSILON = 1e-4


@dataclass(frozen=True, slots=True)
class _Scale:
    """Normalizes a group's rewards to mean 0 and standard deviation 1, token by token."""

    mean: float
    std: float

    @classmethod
    def of(cls, totals: Sequence[float]) -> _Scale:
        """Measure a group's total rewards; the deviation is the unbiased one, as in torch.

        Both are NaN if the totals overflow, and then so are the normalized rewards.
        """
        if not all(map(math.isfinite, totals)):
            return cls(math.nan, math.nan)
        try:
            std = statistics.stdev(totals) if len(totals) > 1 else 0.0
            return cls(statistics.fmean(totals), std + _EPSILON)
        except OverflowError:
            return cls(math.nan, math.nan)

    def apply(self, rewards: Sequence[float]) -> list[float]:
        """Divide each token's reward by the deviation; subtract the mean on the last token."""
        scaled = [reward / self.std for reward in rewards]
        scaled[-1] -= self.mean / self.std
        return scaled


@group_rule(
    "gdpo",
    summary="As `mo_grpo`; the sums are then normalized over the request.",
    reward="as `mo_grpo`, then normalized to mean 0 and standard deviation 1 over the request",
    source="GDPO, arXiv 2601.05242",
    accepts=("group_size",),
    normalizes_requests=True,
    can_spread_holistic=True,
)
def gdpo(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return the rewards of `mo_grpo`, normalized to mean 0 and deviation 1 over all samples.

    Source: GDPO (Liu et al. 2026, arXiv 2601.05242); TRL's ``normalize_then_sum``. The second
    normalization is over the request, so send all groups of a training step together.
    """
    rewards = mo_grpo(samples, params)
    totals = [sum(one) for one in rewards if not isinstance(one, SampleError)]
    totals = [total for total in totals if math.isfinite(total)]
    if not totals:
        return rewards
    scale = _Scale.of(totals)
    return [one if isinstance(one, SampleError) else tuple(scale.apply(one)) for one in rewards]


@group_rule(
    "mo_grpo",
    summary="Each component is normalized within its group before they are added.",
    reward="`sum_k w_k (r_k - mean_G) / (std_G + 1e-4)`, the holistic score among the `r_k` with "
    "weight `W`",
    source="MO-GRPO, arXiv 2509.22047",
    accepts=("group_size",),
    can_spread_holistic=True,
)
def mo_grpo(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return ``sum_k w_k * (r_k - mean_G r_k) / (std_G r_k + 1e-4)`` on the tokens.

    The components are the normalized holistic score, with weight ``W``, and each aspect's reward.
    ``G`` is the samples of one ``group``. So a component that varies more does not count for more.
    Source: MO-GRPO (Ichihara et al. 2025, arXiv 2509.22047). A sample that has no group, or is the
    only one in its group, gets a `SampleError`.
    """
    return _combine_groups(samples, params, _normalised)


@group_rule(
    "gr3",
    summary="Rewards shrink with the length of a completion, relative to its group.",
    reward="`R / (1 + alpha l / mean_G l)`, where `R >= 0` is the reward by rule `base` and `l` "
    "the length",
    source="GR3, arXiv 2603.10535",
    requires=("length_penalty",),
    accepts=("base", "group_size"),
    validate=require_valid_base,
    uses_length=True,
    can_spread_holistic=True,
)
def gr3(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return ``R / (1 + alpha * l / mean_G l)``, each token's reward divided alike.

    ``R`` is the reward by the rule ``params.base`` and ``l`` the length in tokens (in words if the
    caller sent no tokens). Source: GR3 (Li et al. 2026, arXiv 2603.10535), for ``R >= 0``. A sample
    whose ``R`` is negative gets a `SampleError`, as a longer completion would get more. It does not
    count for its group.
    """
    based = [
        _negative_reward(one) if not isinstance(one, SampleError) and _is_negative(one) else one
        for one in apply_base(samples, params)
    ]
    return _change_groups(samples, based, params, _rescaled)


def _is_negative(rewards: Sequence[float]) -> bool:
    """Whether a reward is less than 0 by more than the rounding of its parts."""
    return sum(rewards) < -ROUNDING * max(1.0, sum(map(abs, rewards)))


def _require_valid_length_weights(params: RuleParams) -> None:
    require_valid_base(params)
    if params.least_length_weight > params.length_weight:
        raise RecipeError(
            f"hierarchy.least_length_weight {params.least_length_weight:g} must be at most "
            f"hierarchy.length_weight {params.length_weight:g}"
        )


@group_rule(
    "qglas",
    summary="Advantages, with a bonus for the shorter of the samples above the mean reward.",
    reward="`(R - mean_G R) / (std_G R + 1e-4)` for the reward `R` by rule `base`; samples with "
    "`R > mean_G R` that are shorter than the mean length of such samples get a bonus",
    source="QGLAS (2026), formula below",
    requires=("length_weight",),
    accepts=("base", "group_size", "least_length_weight", "length_cap"),
    validate=_require_valid_length_weights,
    uses_length=True,
    can_spread_holistic=True,
)
def qglas(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return ``A + lambda * h``, advantages with a length bonus on the last token.

    ``A`` is the reward by the rule ``params.base``, normalized within its group by ``sigma``, the
    unbiased standard deviation plus 1e-4. ``P`` are the samples with ``A > 0``, and ``l_P`` is
    their mean length in tokens (in words if the caller sent no tokens). ``h`` is ``clip((l_P - l) /
    l_P, 0, c) / c`` for a sample in ``P``, with ``c = length_cap``, and 0 for others. ``lambda`` is
    ``s / sigma * (least + (length_weight - least) * (1 - clip(s_P / s, 0, 1)))``, where ``s`` and
    ``s_P`` are the population standard deviations of the rewards in the group and in ``P``, so that
    length counts less if the rewards in ``P`` differ more. No advantage changes its sign. Source:
    QGLAS (2026), which leaves ``s``, ``s_P`` and ``sigma`` undefined; these are our definitions.
    """
    return _change_groups(samples, apply_base(samples, params), params, _with_length_bonus)


def _with_length_bonus(
    group: Sequence[RuleInputs], rewards: Sequence[tuple[float, ...]], params: RuleParams
) -> list[TokenRewards]:
    fault = _length_fault(group, params)
    if fault is not None:
        return [fault] * len(group)
    totals = [sum(one) for one in rewards]
    scale = _Scale.of(totals)
    advantages = [scale.apply(one) for one in rewards]
    positive = [index for index, total in enumerate(totals) if total > scale.mean]
    if not positive:
        return [tuple(one) for one in advantages]
    _, std = _moments(totals)
    _, std_of_positive = _moments([totals[index] for index in positive])
    least = params.least_length_weight
    spread = min(std_of_positive / std, 1.0) if std else 0.0
    weight = std / scale.std * (least + (params.length_weight - least) * (1 - spread))
    mean_length = statistics.fmean(group[index].length for index in positive)
    for index in positive:
        saved = 1 - group[index].length / mean_length if mean_length else 0.0
        bonus = min(max(saved, 0.0), params.length_cap) / params.length_cap
        advantages[index][-1] += weight * bonus
    return [tuple(one) for one in advantages]


@group_rule(
    "dvao",
    summary="As `mo_grpo`, with components weighted by how much they vary in the group.",
    reward="`sum_k v_k (r_k - mean_G) / (std_G + 1e-4)` with `v_k = w_k std_G r_k / sum_l w_l "
    "std_G r_l`, the holistic score among the `r_k` with weight `W`",
    source="DVAO, arXiv 2605.25604",
    accepts=("group_size",),
    validate=require_no_negative_weight,
    can_spread_holistic=True,
)
def dvao(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return ``sum_k v_k * (r_k - mean_G r_k) / (std_G r_k + 1e-4)`` on the tokens.

    ``v_k`` is the component's share of the group's variation, ``w_k * std_G r_k`` divided by the
    sum of these. So a component on which a group agrees counts for little, and the denominators
    stay bounded. Deviations are those of the population. A group that agrees on everything gets
    zeros. Source: DVAO (arXiv 2605.25604).
    """
    return _combine_groups(samples, params, _weighted_by_variation)


def _weighted_by_variation(group: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    components = _components(group, params)
    moments = [_moments([sum(values) for values in component]) for _, component in components]
    shares = [weight * std for (weight, _), (_, std) in zip(components, moments, strict=True)]
    total = sum(shares)
    if total == 0:
        return [(0.0,) * parts.num_tokens for parts in group]
    scales = [_Scale(mean, std + _EPSILON) for mean, std in moments]
    return _sum_of_scaled(group, components, scales, [share / total for share in shares])


def _moments(totals: Sequence[float]) -> tuple[float, float]:
    """Return mean and population deviation; both are NaN if the totals overflow."""
    if not all(map(math.isfinite, totals)):
        return math.nan, math.nan
    try:
        return statistics.fmean(totals), statistics.pstdev(totals)
    except OverflowError:
        return math.nan, math.nan


@group_rule(
    "dro",
    summary="Groups of which too few samples reach the minimums are dropped.",
    reward="the reward by rule `base`; none in groups of which less than `pass_share` reach all "
    "`minimums`",
    source="DRO's rubric gates, arXiv 2506.13351",
    requires=("minimums", "pass_share"),
    accepts=("base", "group_size"),
    validate=require_valid_base,
    can_spread_holistic=True,
)
def dro(samples: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    """Return the rewards by the rule ``params.base``, but drop groups that miss the minimums.

    A sample passes if all aspects with a minimum reach it. If less than ``pass_share`` of a group's
    samples pass, all of them get a `SampleError` (``dropped``); otherwise all get their rewards, as
    the gate is on the group. Source: the rubric gates on groups of DRO (Xu et al. 2025, arXiv
    2506.13351). Samples that have no reward by the base do not count.
    """
    return _change_groups(samples, apply_base(samples, params), params, _dropped_below_pass_share)


def _dropped_below_pass_share(
    group: Sequence[RuleInputs], rewards: Sequence[tuple[float, ...]], params: RuleParams
) -> list[TokenRewards]:
    num_passed = sum(all(parts.passes(name, params) for name in params.minimums) for parts in group)
    if num_passed / len(group) >= params.pass_share:
        return list(rewards)
    fault = SampleError(
        "dropped",
        f"{num_passed} of {len(group)} samples of group {quoted(group[0].group)} reach "
        f"hierarchy.minimums, less than hierarchy.pass_share {params.pass_share:g}: the rule drops "
        "the group",
    )
    return [fault] * len(group)


def _negative_reward(tokens: Sequence[float]) -> SampleError:
    return SampleError(
        "non_finite",
        f"rule `gr3` requires rewards of 0 or more, but its base gave {sum(tokens):g}: use a base "
        "such as `rubric`, or constants that keep the reward positive",
    )


def _rescaled(
    group: Sequence[RuleInputs], rewards: Sequence[tuple[float, ...]], params: RuleParams
) -> list[TokenRewards]:
    fault = _length_fault(group, params)
    if fault is not None:
        return [fault] * len(group)
    mean = statistics.fmean(parts.length for parts in group)
    divisors = [
        1 + params.length_penalty * (parts.length / mean if mean else 1.0) for parts in group
    ]
    return [
        tuple(value / divisor for value in one)
        for one, divisor in zip(rewards, divisors, strict=True)
    ]


def _length_fault(group: Sequence[RuleInputs], params: RuleParams) -> SampleError | None:
    """Return why the lengths of a group cannot be compared, or None."""
    if len({parts.length_is_in_words for parts in group}) == 1:
        return None
    return SampleError(
        "invalid_sample",
        f"rule `{params.rule}` compares lengths: send token_offsets with all samples of a group, "
        "or with none",
    )


def _split(
    samples: Sequence[RuleInputs], params: RuleParams
) -> tuple[list[list[int]], dict[int, SampleError]]:
    """Return the indices of each group's samples, and the errors of those without a group."""
    by_group: dict[str | None, list[int]] = defaultdict(list)
    # Samples of a group that was complete at admission may have failed since.
    found = validate_group_members(
        [parts.group for parts in samples], replace(params, group_size=None)
    )
    faults = {index: fault for index, fault in enumerate(found) if fault is not None}
    for index, parts in enumerate(samples):
        if index not in faults:
            by_group[parts.group].append(index)
    return list(by_group.values()), faults


def _combine_groups(
    samples: Sequence[RuleInputs],
    params: RuleParams,
    combine: Callable[[Sequence[RuleInputs], RuleParams], list[TokenRewards]],
) -> list[TokenRewards]:
    """Combine the samples of each group."""
    groups, faults = _split(samples, params)
    rewards: dict[int, TokenRewards] = dict(faults)
    for indices in groups:
        group = [samples[index] for index in indices]
        rewards |= zip(indices, combine(group, params), strict=True)
    return [rewards[index] for index in range(len(samples))]


#: Changes the rewards that the base gave the samples of one group, ``[samples][num_tokens]``.
_Change = Callable[
    [Sequence[RuleInputs], Sequence[tuple[float, ...]], RuleParams], list[TokenRewards]
]


def _change_groups(
    samples: Sequence[RuleInputs],
    based: Sequence[TokenRewards],
    params: RuleParams,
    change: _Change,
) -> list[TokenRewards]:
    """Change each group's rewards by the base; samples that have none do not count."""
    rewards = list(based)
    known = [
        (index, samples[index], one)
        for index, one in enumerate(based)
        if not isinstance(one, SampleError)
    ]
    groups, faults = _split([parts for _, parts, _ in known], params)
    for place, fault in faults.items():
        rewards[known[place][0]] = fault
    for places in groups:
        members = [known[place] for place in places]
        changed = change([parts for _, parts, _ in members], [one for _, _, one in members], params)
        for (index, _, _), one in zip(members, changed, strict=True):
            rewards[index] = one
    return rewards


def _components(
    group: Sequence[RuleInputs], params: RuleParams
) -> list[tuple[float, list[Sequence[float]]]]:
    """Return each component's weight and rewards, ``[samples][num_tokens]``."""
    names = [name for name, weight in params.weights.items() if weight != 0]
    return [
        (
            params.holistic_weight,
            [parts.z_on_tokens() for parts in group],
        ),
        *(
            (params.weights[name], [parts.aspects[name].rewards for parts in group])
            for name in names
        ),
    ]


def _normalised(group: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    components = _components(group, params)
    scales = [_Scale.of([sum(values) for values in component]) for _, component in components]
    weights = [weight for weight, _ in components]
    return _sum_of_scaled(group, components, scales, weights)


def _sum_of_scaled(
    group: Sequence[RuleInputs],
    components: Sequence[tuple[float, list[Sequence[float]]]],
    scales: Sequence[_Scale],
    weights: Sequence[float],
) -> list[TokenRewards]:
    """Return the weighted sum of the normalized components of each sample."""
    rewards = [[0.0] * parts.num_tokens for parts in group]
    for (_, component), scale, weight in zip(components, scales, weights, strict=True):
        for row, values in zip(rewards, component, strict=True):
            for index, value in enumerate(scale.apply(values)):
                row[index] += weight * value
    return [tuple(row) for row in rewards]
