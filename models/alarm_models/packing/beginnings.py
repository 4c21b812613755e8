"""What samples begin with alike, in token ids."""

from __future__ import annotations

__all__ = ["MIN_SHARED", "Ids", "num_common"]

#: A shared beginning shorter than this is not worth a run of its own.
MIN_SHARED = 16

#: Token ids, or token ids with their types.
Ids = tuple[int, ...] | tuple[tuple[int, int], ...]


def num_common(one: Ids, other: Ids, known: int) -> int:
    """Count the ids that two samples begin with alike; the first ``known`` are known to be."""
    low, high = known, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
