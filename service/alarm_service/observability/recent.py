"""Statistics of the samples that were rewarded recently, for the page; pure arithmetic."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from alarm_service.observability.gaming import GamingFigures, RewardRecord

__all__ = ["AdmissionSlice", "Bins", "KeptTexts", "RecentRewards", "RecentSample", "recent_rewards"]

_NUM_BINS = 24
_MAX_POINTS = 512
_MAX_SLICES = 24
_NUM_EXTREMES = 3


@dataclass(frozen=True, slots=True)
class KeptTexts:
    """The beginnings of a sample's texts, kept only with ``--log-texts``."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class RecentSample:
    """A rewarded sample and when it was rewarded, in Unix seconds."""

    record: RewardRecord
    time: float
    texts: KeptTexts | None


@dataclass(frozen=True, slots=True)
class Bins:
    """A histogram: ``counts[i]`` values lie between ``edges[i]`` and ``edges[i + 1]``.

    ``expected`` has what the calibration would give, for values that it standardizes.
    """

    edges: Sequence[float]
    counts: Sequence[int]
    expected: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class AdmissionSlice:
    """The share of samples past the threshold among consecutive samples."""

    time: float
    num_samples: int
    share: float


@dataclass(frozen=True, slots=True)
class RecentRewards:
    """Statistics of one recipe's window.

    ``points`` has characters, reward and admission of the newest samples. ``best`` and ``worst``
    are None where no texts are kept.
    """

    since: float | None
    rewards: Bins | None
    holistic: Bins | None
    points: Sequence[tuple[int, float, bool]]
    admission: Sequence[AdmissionSlice]
    errors: Mapping[str, int]
    figures: GamingFigures
    drift_up: float
    drift_down: float
    best: Sequence[tuple[float, KeptTexts]] | None
    worst: Sequence[tuple[float, KeptTexts]] | None


def recent_rewards(
    samples: Sequence[RecentSample],
    codes: Sequence[str],
    figures: GamingFigures,
    drift: tuple[float, float],
) -> RecentRewards:
    """Summarize a window; ``codes`` are those of its samples without a reward.

    ``drift`` has both sides of the CUSUM, upwards first.
    """
    records = [one.record for one in samples]
    texts = [(one.record.reward, one.texts) for one in samples if one.texts is not None]
    texts.sort(key=lambda one: one[0])
    return RecentRewards(
        since=samples[0].time if samples else None,
        rewards=_bins([one.reward for one in records]),
        holistic=_bins_of_z([one.z for one in records]),
        points=[(one.num_characters, one.reward, one.admitted) for one in records[-_MAX_POINTS:]],
        admission=_slices(samples),
        errors=Counter(codes),
        figures=figures,
        drift_up=drift[0],
        drift_down=drift[1],
        best=texts[: -_NUM_EXTREMES - 1 : -1] if texts else None,
        worst=texts[:_NUM_EXTREMES] if texts else None,
    )


def _bins(values: Sequence[float]) -> Bins | None:
    if not values:
        return None
    low, high = min(values), max(values)
    if high - low < 1e-9:  # one value: a bin around it
        low, high = low - 0.5, high + 0.5
    return _counted(values, low, high)


def _bins_of_z(values: Sequence[float]) -> Bins | None:
    """Count holistic scores, beside those of a normal distribution of mean 0 and deviation 1."""
    if not values:
        return None
    bins = _counted(values, min(-4.0, *values), max(4.0, *values))
    below = [(1 + math.erf(edge / math.sqrt(2))) / 2 for edge in bins.edges]
    expected = [len(values) * (after - before) for before, after in pairwise(below)]
    return Bins(bins.edges, bins.counts, expected)


def _counted(values: Sequence[float], low: float, high: float) -> Bins:
    edges = [low + (high - low) * at / _NUM_BINS for at in range(_NUM_BINS + 1)]
    inner = edges[1:-1]
    counts = Counter(bisect_right(inner, value) for value in values)
    return Bins(edges, [counts[at] for at in range(_NUM_BINS)], None)


def _slices(samples: Sequence[RecentSample]) -> list[AdmissionSlice]:
    """Cut the window into consecutive samples, of equal numbers."""
    size = max(1, -(-len(samples) // _MAX_SLICES))
    slices = []
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        num_admitted = sum(one.record.admitted for one in part)
        slices.append(AdmissionSlice(part[-1].time, len(part), num_admitted / len(part)))
    return slices
