"""Which samples a file shows, where it cannot hold all of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from alarm_service.viewer.index import RewardIndex

__all__ = ["Pick", "picked"]


class Pick(StrEnum):
    """Which groups are taken first."""

    EVEN = "even"
    WORST = "worst"
    BEST = "best"


def picked(index: RewardIndex, limit: int, pick: Pick) -> list[int]:
    """Return at most ``limit`` samples in the order of the files, in whole groups where they fit.

    ``even`` takes groups at equal distances; ``worst`` and ``best`` those with the lowest and the
    highest reward. A group that is larger than what is left is cut.
    """
    if len(index) <= limit:
        return list(range(len(index)))
    chosen: list[int] = []
    for group in _ordered(index, limit, pick):
        chosen += group[: limit - len(chosen)]
        if len(chosen) >= limit:
            break
    return sorted(chosen)


def _ordered(index: RewardIndex, limit: int, pick: Pick) -> list[list[int]]:
    groups = index.groups()
    if pick is Pick.EVEN:
        num = max(1, len(groups) * limit // len(index))
        return [groups[at * len(groups) // num] for at in range(num)]
    known = [group for group in groups if any(index.rewards[at] is not None for at in group)]
    if pick is Pick.WORST:
        return sorted(known, key=lambda group: min(_known(index, group)))
    return sorted(known, key=lambda group: -max(_known(index, group)))


def _known(index: RewardIndex, group: Sequence[int]) -> list[float]:
    return [value for at in group if (value := index.rewards[at]) is not None]
