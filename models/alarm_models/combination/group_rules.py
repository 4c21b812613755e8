"""Rules that compare the samples of one prompt. To add one, write a function here."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from alarm_models.combination.rule_registry import (
    RuleInputs,
    RuleParams,
    TokenRewards,
    group_rule,
    validate_group_members,
)
from alarm_models.errors import SampleError

__all__ = ["gdpo", "mo_grpo", "validate_group_members"]

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
    rewards: dict[int, TokenRewards] = {}
    by_group: dict[str | None, list[int]] = defaultdict(list)
    # Samples of a group that was complete at admission may have failed since.
    found = validate_group_members(
        [parts.group for parts in samples], replace(params, group_size=None)
    )
    for index, (parts, fault) in enumerate(zip(samples, found, strict=True)):
        if fault is None:
            by_group[parts.group].append(index)
        else:
            rewards[index] = fault
    for indices in by_group.values():
        group = [samples[index] for index in indices]
        rewards |= zip(indices, _normalised(group, params), strict=True)
    return [rewards[index] for index in range(len(samples))]


def _normalised(group: Sequence[RuleInputs], params: RuleParams) -> list[TokenRewards]:
    names = [name for name, weight in params.weights.items() if weight != 0]
    rewards = [[0.0] * parts.num_tokens for parts in group]
    components: list[tuple[float, list[Sequence[float]]]] = [
        (
            params.holistic_weight,
            [parts.z_on_tokens() for parts in group],
        ),
        *(
            (params.weights[name], [parts.aspects[name].rewards for parts in group])
            for name in names
        ),
    ]
    for weight, component in components:
        scale = _Scale.of([sum(values) for values in component])
        for row, values in zip(rewards, component, strict=True):
            for index, value in enumerate(scale.apply(values)):
                row[index] += weight * value
    return [tuple(row) for row in rewards]
