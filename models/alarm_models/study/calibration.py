"""Computes the constants of a recipe from the scores of a policy's completions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Admission", "Moments", "admission_for", "admitted_share", "moments"]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and population standard deviation of scores."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A threshold in standard deviations, and the share of the scores at or past it."""

    threshold: float
    share: float


def moments(scores: ArrayLike) -> Moments:
    """Return the moments of scores without NaN; raise `ValueError` for fewer than two."""
    array = np.asarray(scores, float)
    array = array[~np.isnan(array)]
    if len(array) < 2:
        raise ValueError(f"{len(array)} scores: at least two are required for a standard deviation")
    return Moments(float(array.mean()), float(array.std()), len(array))


def admission_for(normalized: ArrayLike, wanted: float) -> Admission:
    """Return the threshold that admits the share closest to ``wanted``, with ``0 < wanted < 1``.

    It lies halfway between two scores, so that rounding does not matter. Equal scores are admitted
    together, so with few or tied scores the share may differ from ``wanted``.
    """
    array = np.asarray(normalized, float)
    values, counts = np.unique(array[~np.isnan(array)], return_counts=True)
    if len(values) < 2:
        raise ValueError("all holistic scores are equal: no threshold separates them")
    shares = 1 - np.cumsum(counts)[:-1] / counts.sum()  # past the gap above each value
    best = int(np.argmin(np.abs(shares - wanted)))
    threshold = float((values[best] + values[best + 1]) / 2)
    return Admission(threshold, admitted_share(array, threshold))


def admitted_share(normalized: ArrayLike, threshold: float) -> float:
    """Return the share of normalized scores at or past a threshold."""
    array = np.asarray(normalized, float)
    return float(np.mean(array[~np.isnan(array)] >= threshold))
