"""Compares policies by one reward: means, win rates and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alarm_models.study.bootstrap import Estimate, Resampling, estimate, ratio
from alarm_models.study.pairs import Floats, Pairs, group_sums, pairs_between, preferences

__all__ = ["Comparison", "Spread", "WinRate", "compare", "matrix", "win_rate"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A policy's mean reward over prompts, and the standard deviation and number of completions.

    ``gain`` is the mean difference from the first policy, paired by prompt.
    """

    mean: Estimate
    std: float
    num_completions: int
    gain: Estimate


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often one policy beats another; every prompt has weight 1 in the counts.

    ``rate`` is wins / (wins + losses), ties left out (halfrot/ALaRM, ``eval_compare.py``).
    """

    wins: float
    losses: float
    ties: float
    rate: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies by one reward: ``rates[row][column]``, None on the diagonal, and the rows' means."""

    spreads: tuple[Spread, ...]
    rates: tuple[tuple[WinRate | None, ...], ...]
    averages: tuple[Estimate, ...]


def compare(
    values: ArrayLike,
    prompts: Sequence[int],
    policies: Sequence[int],
    *,
    is_lower_better: bool,
    resampling: Resampling,
) -> Comparison:
    """Compare policies 0, 1, ... by one reward; the three lists are ``[completions]``.

    A policy may have several completions of a prompt: the prompt's share of wins is over all pairs.
    Missing values (NaN) are left out. Means keep the reward's own sign.
    """
    array = np.asarray(values, float)
    good = -array if is_lower_better else array
    pairs = {
        (one, other): pairs_between(prompts, policies, one, other)
        for one in range(max(policies) + 1)
        for other in range(max(policies) + 1)
        if one != other
    }
    outcomes = {key: preferences(good, paired) for key, paired in pairs.items()}
    rates, averages = matrix(outcomes, pairs, max(policies) + 1, resampling)
    return Comparison(_spreads(array, prompts, policies, resampling), rates, averages)


def matrix(
    outcomes: dict[tuple[int, int], Floats],
    pairs: dict[tuple[int, int], Pairs],
    num_policies: int,
    resampling: Resampling,
) -> tuple[tuple[tuple[WinRate | None, ...], ...], tuple[Estimate, ...]]:
    """Return every row's win rate against each column, and the mean of each row.

    ``outcomes[row, column]`` is ``[pairs]``: 1 where the row wins, -1 the column, 0 a tie.
    """
    policies = range(num_policies)
    rates = tuple(
        tuple(
            None if row == column
            else win_rate(outcomes[row, column], pairs[row, column], resampling)
            for column in policies
        )
        for row in policies
    )  # fmt: skip
    averages = tuple(
        estimate(
            np.concatenate(
                [
                    _wins(outcomes[row, one], pairs[row, one])[:, :2]
                    for one in policies
                    if one != row
                ],
                axis=1,
            ),
            _mean_rate,
            resampling,
        )
        for row in policies
    )
    return rates, averages


def win_rate(outcomes: ArrayLike, pairs: Pairs, resampling: Resampling) -> WinRate:
    """Count the wins of the first policy; outcomes ``[pairs]`` are 1, -1, 0 or NaN."""
    sums = _wins(np.asarray(outcomes, float), pairs)
    wins, decided, ties = sums.sum(axis=0)
    rate = estimate(sums[:, :2], ratio, resampling)
    return WinRate(float(wins), float(decided - wins), float(ties), rate)


def _wins(outcomes: Floats, pairs: Pairs) -> Floats:
    """Return each prompt's shares of wins, of decided pairs and of ties, ``[prompts, 3]``."""
    known = ~np.isnan(outcomes)
    sums = group_sums([outcomes > 0, known & (outcomes != 0), outcomes == 0, known], pairs)
    return sums[:, :3] / np.maximum(sums[:, 3:], 1)


def _mean_rate(totals: Floats) -> Floats:
    return np.asarray(np.mean(totals[..., 0::2] / totals[..., 1::2], axis=-1))


def _spreads(
    values: Floats, prompts: Sequence[int], policies: Sequence[int], resampling: Resampling
) -> tuple[Spread, ...]:
    prompt, policy, known = np.asarray(prompts), np.asarray(policies), ~np.isnan(values)
    num_prompts = int(prompt.max()) + 1
    means = []
    for one in range(int(policy.max()) + 1):
        mine = known & (policy == one)
        counts = np.bincount(prompt[mine], minlength=num_prompts)
        with np.errstate(invalid="ignore"):
            means.append(np.bincount(prompt[mine], values[mine], num_prompts) / counts)
    return tuple(
        Spread(
            _mean(own, resampling),
            float(np.std(values[known & (policy == one)]))
            if known[policy == one].any()
            else np.nan,
            int(np.count_nonzero(known & (policy == one))),
            _mean(own - means[0], resampling),
        )
        for one, own in enumerate(means)
    )


def _mean(by_prompt: Floats, resampling: Resampling) -> Estimate:
    known = ~np.isnan(by_prompt)
    sums = np.stack([np.where(known, by_prompt, 0.0), known.astype(float)], axis=1)
    return estimate(sums, ratio, resampling)
