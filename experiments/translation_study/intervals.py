"""Gains and win rates over prompts and seeds, with bootstrap intervals over both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figure", "gain", "win_rate", "win_rates_by_seed"]

Values = NDArray[np.float64]  # [seeds, prompts, samples]

_SEED = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return the number with its interval, as tables show it."""
        parts = (f"{part * scale:.{digits}f}" for part in (self.value, self.low, self.high))
        return "{} [{}, {}]".format(*parts)

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def gain(values: Values, base: Values, draws: int) -> Figure:
    """Return the mean difference, over the same prompts; the seeds of both are drawn separately.

    Each draw resamples seeds, and prompts with all their samples.
    """
    choose = np.random.default_rng(_SEED)
    found = []
    for _ in range(draws):
        prompts = choose.integers(0, values.shape[1], values.shape[1])
        mine, other = (_seeds(one, choose)[:, prompts] for one in (values, base))
        found.append(mine.mean() - other.mean())
    return _figure(float(values.mean() - base.mean()), found)


def win_rate(values: Values, other: Values, draws: int, *, is_lower_better: bool) -> Figure:
    """Return wins / (wins + losses) over all pairs of seeds, ties left out; NaN if all are ties."""
    sign = -1 if is_lower_better else 1
    compared = np.sign(sign * (values[:, None] - other[None]))  # [seeds, seeds, prompts, samples]
    choose = np.random.default_rng(_SEED)
    found = []
    for _ in range(draws):
        prompts = choose.integers(0, compared.shape[2], compared.shape[2])
        rows = choose.integers(0, compared.shape[0], compared.shape[0])
        columns = choose.integers(0, compared.shape[1], compared.shape[1])
        found.append(_rate(compared[rows][:, columns][:, :, prompts]))
    return _figure(_rate(compared), found)


def win_rates_by_seed(values: Values, other: Values, *, is_lower_better: bool) -> list[float]:
    """Return the win rate of each seed against the same seed, as the paper's tables average it."""
    sign = -1 if is_lower_better else 1
    count = max(len(values), len(other))
    return [
        _rate(np.sign(sign * (values[seed % len(values)] - other[seed % len(other)])))
        for seed in range(count)
    ]


def _rate(outcomes: NDArray[np.float64]) -> float:
    wins, losses = (outcomes > 0).sum(), (outcomes < 0).sum()
    return float(wins / (wins + losses)) if wins + losses else float("nan")


def _seeds(values: Values, choose: np.random.Generator) -> Values:
    return values[choose.integers(0, len(values), len(values))]


def _figure(value: float, draws: list[float]) -> Figure:
    kept = np.asarray(draws)[~np.isnan(draws)]
    if not len(kept):
        return Figure(value, float("nan"), float("nan"))
    low, high = np.quantile(kept, [0.025, 0.975])
    return Figure(value, float(low), float(high))
