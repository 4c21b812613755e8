"""Where a long call is cut: under a server's limits, and between groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

#: Each sample's own, or None.
Groups: TypeAlias = Sequence["str | int | None"]


def cut(
    groups: Groups, sizes: Sequence[int], most: int, max_samples: int, room: int
) -> Iterator[tuple[int, int]]:
    """Parts `[start, end)` in order: of about `most` samples, never over `max_samples` and `room`.

    `sizes` are the samples' bytes, a separator in each. Neighbours of one group stay together,
    where a part holds them all; a sample over `room` is a part of its own.
    """
    start = used = 0
    for first, end in _units(groups, sizes, max_samples, room):
        size = sum(sizes[first:end])
        is_full = first - start >= most or end - start > max_samples or used + size > room
        if first > start and is_full:
            yield start, first
            start, used = first, 0
        used += size
    yield start, len(groups)


def middle(groups: Groups) -> int:
    """Where to halve: between the two groups that are nearest to the half, else within the one."""
    half = len(groups) // 2
    borders = [end for _, end in _runs(groups)][:-1]
    return min(borders, key=lambda border: abs(border - half), default=half)


def _units(
    groups: Groups, sizes: Sequence[int], max_samples: int, room: int
) -> Iterator[tuple[int, int]]:
    for first, end in _runs(groups):
        if end - first <= max_samples and sum(sizes[first:end]) <= room:
            yield first, end
        else:
            yield from ((index, index + 1) for index in range(first, end))


def _runs(groups: Groups) -> Iterator[tuple[int, int]]:
    """Neighbours of one group; a sample without one is alone."""

    def of(index: int) -> tuple[str | int | None, int]:
        group = groups[index]
        return group, index if group is None else -1

    for _, run in groupby(range(len(groups)), of):
        indices = list(run)
        yield indices[0], indices[-1] + 1
