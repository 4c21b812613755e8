"""Bootstrap estimates: statistics with intervals, from prompts resampled with replacement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from alarm_models.study.pairs import Floats

__all__ = ["Estimate", "Resampling", "estimate", "ratio"]

#: Maximum number of values in memory at once while prompts are resampled.
_MAX_DRAWN = 4_000_000


@dataclass(frozen=True, slots=True)
class Resampling:
    """Settings of the bootstrap: number of resamples, random seed and confidence level."""

    num_draws: int = 2000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its percentile interval; NaN if the data do not determine it.

    Too few prompts determine no interval (`estimate`).
    """

    value: float
    low: float
    high: float

    def lies_below(self, value: float) -> bool:
        """Return whether the whole interval lies below a value."""
        return self.high < value

    def lies_above(self, value: float) -> bool:
        """Return whether the whole interval lies above a value."""
        return self.low > value


def estimate(
    sums: Floats,
    figure: Callable[[Floats], Floats],
    resampling: Resampling,
    counted: Floats | None = None,
) -> Estimate:
    """Compute a statistic of sums over prompts, with its interval.

    ``sums`` is ``[prompts, columns]``; ``figure`` takes totals ``[..., columns]`` to ``[...]``.
    Whole prompts are resampled, because pairs of one prompt are correlated, and all columns
    together, so that comparisons stay paired. Resamples without a value (0 / 0) are left out.

    There is no interval if so few prompts count that all could err in the same direction by chance
    more often than the level allows: below six, at 95%. Their resamples differ too little. A prompt
    counts if ``counted``, ``[prompts]``, or else one of its sums, is not 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(figure(sums.sum(axis=0)))
        which = np.any(sums != 0, axis=1) if counted is None else counted
        num_counted = int(np.count_nonzero(which))
        if 2.0 ** (1 - num_counted) > 1 - resampling.level:
            return Estimate(value, float("nan"), float("nan"))
        draws = np.concatenate([figure(total) for total in _totals(sums, resampling)])
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - resampling.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def ratio(totals: Floats) -> Floats:
    """Return the first column divided by the second."""
    return np.asarray(totals[..., 0] / totals[..., 1])


def _totals(sums: Floats, resampling: Resampling) -> Iterator[Floats]:
    """Yield totals of resampled prompts, ``[draws, columns]``, in chunks of bounded size."""
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
