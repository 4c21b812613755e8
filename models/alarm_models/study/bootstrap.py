"""Figures with intervals: prompts are drawn again and again, and the figure is computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from alarm_models.study.pairs import Floats

__all__ = ["Estimate", "Resampling", "estimate", "ratio"]

#: Numbers in memory at once while prompts are drawn.
_MAX_DRAWN = 4_000_000


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made: so many draws of as many prompts as there are, from one seed."""

    num_draws: int = 2000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its percentile interval; NaN where the data say nothing of it."""

    value: float
    low: float
    high: float

    def lies_below(self, value: float) -> bool:
        """Say whether the whole interval lies below a value."""
        return self.high < value

    def lies_above(self, value: float) -> bool:
        """Say whether the whole interval lies above a value."""
        return self.low > value


def estimate(sums: Floats, figure: Callable[[Floats], Floats], resampling: Resampling) -> Estimate:
    """Compute a figure of sums over prompts, with its interval.

    ``sums`` is ``[prompts, columns]``; ``figure`` takes totals ``[..., columns]`` to ``[...]``.
    Whole prompts are drawn, because pairs of one prompt say much the same; every column is drawn
    together, so that what is compared stays paired. Draws without a figure (0 / 0) are left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(figure(sums.sum(axis=0)))
        draws = np.concatenate([figure(total) for total in _totals(sums, resampling)])
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - resampling.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def ratio(totals: Floats) -> Floats:
    """Return the first column over the second."""
    return np.asarray(totals[..., 0] / totals[..., 1])


def _totals(sums: Floats, resampling: Resampling) -> Iterator[Floats]:
    """Yield totals of drawn prompts, ``[draws, columns]``, a bounded number at a time."""
    num_prompts = len(sums)
    if not num_prompts:
        yield np.full((1, sums.shape[1]), np.nan)
        return
    choose = np.random.default_rng(resampling.seed)
    even = np.full(num_prompts, 1 / num_prompts)
    left = resampling.num_draws
    while left > 0:
        size = min(left, max(1, _MAX_DRAWN // num_prompts))
        yield choose.multinomial(num_prompts, even, size) @ sums
        left -= size
