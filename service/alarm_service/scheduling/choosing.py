"""Which of the work that waits makes the next batch: pure choices, the oldest always among them."""

from __future__ import annotations

from collections.abc import Sequence

from alarm_models.features import BatchCost
from alarm_models.packing.beginnings import MIN_SHARED, num_common
from alarm_service.scheduling.work import Work

__all__ = ["take_batch"]

#: How far beyond the oldest work to look for what goes well with it.
_WINDOW = 512


def take_batch(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Choose one model's next batch from its work, oldest first.

    The oldest work always goes, even where it alone costs more than ``max_tokens``; beside it goes
    what fits within them, by what a batch costs the model.
    """
    window = waiting[:_WINDOW]
    match waiting[0].cost:
        case BatchCost.ALONE:
            return [waiting[0]]
        case BatchCost.PADDED:
            return _of_like_length(window, max_tokens)
        case BatchCost.PACKED:
            return _whatever_fits(window, max_tokens)
        case BatchCost.SHARED:
            return _of_like_beginning(window, max_tokens)


def _of_like_length(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Take the oldest and its neighbours in length: a batch costs its longest times its number."""
    oldest = waiting[0]
    by_length = sorted(waiting, key=lambda work: work.features.num_tokens)
    low = high = next(index for index, work in enumerate(by_length) if work is oldest)
    while True:
        shorter = by_length[low - 1] if low > 0 else None
        longer = by_length[high + 1] if high + 1 < len(by_length) else None
        longest = by_length[high].features.num_tokens
        num_next = high - low + 2
        # Shorter neighbours first: they never make the batch wider.
        if shorter is not None and longest * num_next <= max_tokens:
            low -= 1
        elif longer is not None and longer.features.num_tokens * num_next <= max_tokens:
            high += 1
        else:
            return by_length[low : high + 1]


def _whatever_fits(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Take work in the order it came, passing over what does not fit any more."""
    batch = [waiting[0]]
    left = max_tokens - waiting[0].features.num_tokens
    for work in waiting[1:]:
        if work.features.num_tokens <= left:
            batch.append(work)
            left -= work.features.num_tokens
    return batch


def _of_like_beginning(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Take the oldest with those that begin alike, whose beginning is computed once.

    Other groups follow in the order of their oldest, each only where all of it fits: a group that
    is torn apart computes its beginning again.
    """
    groups: dict[tuple[int, ...], list[tuple[Work, int]]] = {}
    for work in waiting:
        ids = work.features.ids
        group = groups.setdefault(ids[:MIN_SHARED], [])
        known = num_common(group[0][0].features.ids, ids, 0) if group else 0
        group.append((work, len(ids) - (known if known >= MIN_SHARED else 0)))
    first, *others = groups.values()
    batch, left = [first[0][0]], max_tokens - first[0][1]
    for work, cost in first[1:]:
        if cost <= left:
            batch.append(work)
            left -= cost
    for group in others:
        whole = sum(cost for _, cost in group)
        if whole <= left:
            batch.extend(work for work, _ in group)
            left -= whole
    return batch
