"""Figures that show whether a policy games its reward: pure arithmetic over recent samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul

__all__ = [
    "DRIFT_LEVEL",
    "INTENDED",
    "LIMITS",
    "OMITTED_PARTS",
    "RULE",
    "TIE",
    "WINDOW",
    "Drift",
    "GamingFigures",
    "Limits",
    "RewardRecord",
    "average_run_length",
    "figures_of",
    "flat_groups",
    "grouped",
    "holistic_of_groups",
    "omitted_part",
    "shared_segment_share",
    "shared_texts",
]

#: Figures are of this many samples: one or a few training steps.
WINDOW = 2048

#: Rewards that differ by less count as equal: batches differ in the last bits.
TIE = 1e-4

#: A figure of fewer samples, groups, pairs or segments is not given: it would be noise.
_MIN_SAMPLES, _MIN_GROUPS, _MIN_PAIRS, _MIN_SEGMENTS = 32, 8, 64, 64

#: `k` and `h` of the CUSUM, in standard deviations of the calibration.
DRIFT_REFERENCE, DRIFT_LEVEL = 0.5, 15.0

#: What a rule adds to the sum of the weighted parts, such as a length penalty.
RULE = "rule"

#: What `omitted` may contain (docs/samples.md).
OMITTED_PARTS = (
    "answer",
    "completion_end",
    "content_parts",
    "messages",
    "prompt_end",
    "prompt_start",
    "system",
    "thinking",
    "tool_calls",
    "tool_results",
    "tools",
)

#: Parts that recipes leave out on purpose.
INTENDED = frozenset({"system", "thinking", "tools"})


def omitted_part(name: str) -> str:
    """Return the name, or ``other`` for one that only another server uses."""
    return name if name in OMITTED_PARTS else "other"


@dataclass(frozen=True, slots=True)
class RewardRecord:
    """What the figures need of a rewarded sample; it has no texts.

    ``group`` is the same for samples of one prompt that are compared with each other. ``parts``
    are what the holistic score and the aspects add to the reward, or None if the rule is no sum.
    """

    group: Hashable
    num_characters: int
    reward: float
    z: float
    parts: Mapping[str, float] | None
    admitted: bool
    truncated: bool
    omitted: Sequence[str]


@dataclass(frozen=True, slots=True)
class GamingFigures:
    """Figures of a window of samples; None, or no entry, where it has too few samples.

    ``zero_deviation_share`` is the share of groups, of at least two samples, whose rewards are all
    within 1e-4. ``ceiling_share`` is the share of samples within 1e-4 of ``ceiling``, the largest
    reward in the window. ``variance_shares`` is each component's covariance with the reward,
    divided by the variance of the reward: the shares sum to 1, and ``rule`` has what the rule adds.
    ``opposed_shares`` has for each aspect the share of adjacent pairs in a group that it orders
    against the holistic score. ``omitted_share`` leaves out what recipes omit on purpose
    (`INTENDED`).
    """

    num_samples: int
    num_groups: int
    zero_deviation_share: float | None
    ceiling: float | None
    ceiling_share: float | None
    variance_shares: Mapping[str, float]
    opposed_shares: Mapping[str, float]
    length_correlation: float | None
    admitted_share: float | None
    truncated_share: float | None
    omitted_share: float | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Values beyond which a figure says that the reward may be gamed.

    ``variance_share`` is a limit of aspects and of ``rule``: the holistic score may dominate.
    """

    zero_deviation_share: float = 0.5
    ceiling_share: float = 0.5
    variance_share: float = 0.8
    opposed_share: float = 0.65
    shared_segment_share: float = 0.2
    length_correlation: float = 0.7
    drift: float = DRIFT_LEVEL
    truncated_share: float = 0.05
    omitted_share: float = 0.05


LIMITS = Limits()


def figures_of(records: Sequence[RewardRecord]) -> GamingFigures:
    """Compute the figures of a window of samples."""
    groups = [one for one in grouped(records).values() if len(one) > 1]
    rewards = [one.reward for one in records]
    has_enough = len(records) >= _MIN_SAMPLES
    ceiling = max(rewards) if has_enough else None

    def share(num: int) -> float | None:
        return num / len(records) if has_enough else None

    return GamingFigures(
        num_samples=len(records),
        num_groups=len(groups),
        zero_deviation_share=(
            len(flat_groups(groups)) / len(groups) if len(groups) >= _MIN_GROUPS else None
        ),
        ceiling=ceiling,
        ceiling_share=(
            None if ceiling is None else share(sum(one >= ceiling - TIE for one in rewards))
        ),
        variance_shares=_variance_shares(records),
        opposed_shares=_opposed_shares(groups),
        length_correlation=_correlation(rewards, [one.num_characters for one in records]),
        admitted_share=share(sum(one.admitted for one in records)),
        truncated_share=share(sum(one.truncated for one in records)),
        omitted_share=share(sum(not INTENDED.issuperset(one.omitted) for one in records)),
    )


def grouped(records: Iterable[RewardRecord]) -> dict[Hashable, list[RewardRecord]]:
    """Return the samples by group, in order."""
    groups: dict[Hashable, list[RewardRecord]] = {}
    for one in records:
        groups.setdefault(one.group, []).append(one)
    return groups


def flat_groups(groups: Iterable[Sequence[RewardRecord]]) -> list[Sequence[RewardRecord]]:
    """Return the groups whose rewards are all equal, so that every advantage is 0."""

    def spread(group: Sequence[RewardRecord]) -> float:
        rewards = [one.reward for one in group]
        return max(rewards) - min(rewards)

    return [group for group in groups if spread(group) <= TIE]


def holistic_of_groups(records: Iterable[RewardRecord]) -> list[float]:
    """Return each group's mean of ``z``: what `Drift.add` takes.

    Samples of one prompt are not independent of each other, groups nearly are.
    """
    return [sum(one.z for one in group) / len(group) for group in grouped(records).values()]


def shared_texts(segments: Iterable[tuple[Hashable, str]]) -> set[str]:
    """Return the texts that are segments of answers to several prompts.

    ``segments`` are prompts and texts. A text is shared if at least 3 prompts, and a twentieth of
    them, have it: what an answer to one question says is seldom part of answers to others.
    """
    prompts: dict[str, set[Hashable]] = {}
    known: set[Hashable] = set()
    for prompt, text in segments:
        known.add(prompt)
        prompts.setdefault(text, set()).add(prompt)
    least = max(3.0, len(known) / 20)
    return {text for text, found in prompts.items() if len(found) >= least}


def shared_segment_share(segments: Sequence[tuple[Hashable, str]]) -> float | None:
    """Return the share of segments whose text is shared; None for few segments."""
    if len(segments) < _MIN_SEGMENTS:
        return None
    shared = shared_texts(segments)
    return sum(text in shared for _, text in segments) / len(segments)


def _variance_shares(records: Sequence[RewardRecord]) -> dict[str, float]:
    summed = [(one.reward, one.parts) for one in records if one.parts is not None]
    rewards = [reward for reward, _ in summed]
    if len(rewards) < _MIN_SAMPLES:
        return {}
    centered = _centered(rewards)
    variance = _mean_product(centered, centered)
    if variance <= TIE**2:
        return {}
    columns = {
        name: [parts.get(name, 0.0) for _, parts in summed]
        for name in dict.fromkeys(name for _, parts in summed for name in parts)
    }
    columns[RULE] = [reward - sum(parts.values()) for reward, parts in summed]
    # The mean of a column needs no subtraction: that of the centered rewards is 0.
    return {name: _mean_product(one, centered) / variance for name, one in columns.items()}


def _opposed_shares(groups: Iterable[Sequence[RewardRecord]]) -> dict[str, float]:
    """Return each aspect's share of opposed adjacent pairs, without those that either ties."""
    pairs: Counter[str] = Counter()
    opposed: Counter[str] = Counter()
    for group in groups:
        for first, second in pairwise(group):
            if first.parts is None or second.parts is None or first.z == second.z:
                continue
            for name, part in first.parts.items():
                difference = part - second.parts.get(name, part)
                if name != "holistic" and difference:
                    pairs[name] += 1
                    opposed[name] += (difference > 0) != (first.z > second.z)
    return {name: opposed[name] / num for name, num in pairs.items() if num >= _MIN_PAIRS}


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    if len(xs) < _MIN_SAMPLES:
        return None
    from_x, from_y = _centered(xs), _centered(ys)
    scale = math.sqrt(_mean_product(from_x, from_x) * _mean_product(from_y, from_y))
    return _mean_product(from_x, from_y) / scale if scale else None


def _centered(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _mean_product(xs: Sequence[float], ys: Sequence[float]) -> float:
    return math.fsum(map(mul, xs, ys)) / len(xs)


@dataclass(slots=True)
class Drift:
    """A two-sided CUSUM (Page 1954) of the holistic score, in the calibration's deviations.

    Each side adds what exceeds the reference value `k` = 0.5 and never falls below 0. A side above
    `DRIFT_LEVEL` says that the scores have moved away from the calibration. It is bounded by twice
    the level, so that it comes back soon after the scores do.
    """

    up: float = 0.0
    down: float = 0.0

    def add(self, z: float) -> None:
        """Add the mean of one group."""
        self.up = _bounded(self.up + z - DRIFT_REFERENCE)
        self.down = _bounded(self.down - z - DRIFT_REFERENCE)


def _bounded(total: float) -> float:
    return min(max(0.0, total), 2 * DRIFT_LEVEL)


def average_run_length(shift: float, level: float = DRIFT_LEVEL) -> float:
    """Return how many groups `Drift` takes to pass a level, on average.

    It assumes independent normal means of deviation 1 around ``shift`` (Siegmund 1985). A shift of
    0 gives the groups between two false alarms.
    """
    # The two sides alarm independently of each other, so that their rates add up.
    rates = [
        1 / _one_sided_run_length(direction * shift - DRIFT_REFERENCE, level)
        for direction in (1, -1)
    ]
    return 1 / sum(rates) if sum(rates) else math.inf


def _one_sided_run_length(mean: float, level: float) -> float:
    height = level + 1.166  # Siegmund's correction: the sum overshoots the level
    if mean == 0:
        return height**2
    exponent = -2 * mean * height
    if exponent > 700:  # exp would overflow
        return math.inf
    return (math.exp(exponent) - exponent - 1) / (2 * mean**2)
