"""Which of the work that waits makes the next batch: pure choices, the first in turn among them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from alarm_models.features import BatchCost
from alarm_models.packing.beginnings import MIN_SHARED, num_common
from alarm_service.scheduling.caller import Caller
from alarm_service.scheduling.work import Work

__all__ = ["in_turn", "take_batch", "weights_of"]

#: How far beyond the first work to look for what goes well with it.
_WINDOW = 512

#: Batches that a window may fill, where the order is the turn and not the length.
_WINDOW_BATCHES = 4

#: Where a batch is kept short, a shared beginning may still have so many times its own cost beside
#: it: cut into more batches, it would be run again in each where nothing is remembered.
_TIMES_FIRST = 4


def weights_of(callers: Sequence[Caller]) -> dict[Caller, float]:
    """Return what a token costs each caller: callers of one key share what one caller has."""
    num_callers = Counter(caller.key for caller in callers)
    return {caller: float(num_callers[caller.key]) if caller.key else 1.0 for caller in callers}


def in_turn(
    waiting: Mapping[Caller, Sequence[Work]],
    start: Callable[[Caller], float],
    seconds_per_token: float,
    max_tokens: int,
) -> list[Work]:
    """Order one model's work by fair turns of its callers, as far as a batch may look.

    Each caller's own work keeps its order. The caller with the smallest start tag has the next
    turn, which moves its tag on by the device time that its work is expected to take; work that
    begins alike is one turn, so that a group is not torn apart.
    """
    weights = weights_of(list(waiting))
    turns = {caller: _turns(works, max_tokens) for caller, works in waiting.items()}
    heap = [
        (start(caller), works[0].since, number, caller)
        for number, (caller, works) in enumerate(waiting.items())
    ]
    heapq.heapify(heap)
    ordered: list[Work] = []
    total = 0
    while heap and len(ordered) < _WINDOW:
        tag, _, number, caller = heap[0]
        works, cost = next(turns[caller], ((), 0))
        if not works:
            heapq.heappop(heap)
            continue
        ordered += works
        total += cost
        if ordered[0].cost is not BatchCost.PADDED and total >= _WINDOW_BATCHES * max_tokens:
            break
        tag += cost * seconds_per_token * weights[caller]
        heapq.heapreplace(heap, (tag, works[-1].since, number, caller))
    return [work for work in ordered if work.cost is ordered[0].cost]


def _turns(works: Sequence[Work], max_tokens: int) -> Iterator[tuple[list[Work], int]]:
    """Cut a caller's work into turns, and say what each costs in tokens."""
    turn: list[Work] = []
    cost = 0
    for work in works:
        if turn and _begins_alike(turn[0], work):
            own = _own_tokens(turn[0], work)
            if cost + own <= max_tokens and len(turn) < _WINDOW:
                turn.append(work)
                cost += own
                continue
        if turn:
            yield turn, cost
        turn, cost = [work], work.features.num_tokens
    if turn:
        yield turn, cost


def _begins_alike(one: Work, other: Work) -> bool:
    return (
        one.cost is BatchCost.SHARED
        and other.cost is BatchCost.SHARED
        and _beginning(one) == _beginning(other)
    )


def _beginning(work: Work) -> tuple[str, tuple[int, ...]]:
    return work.features.owner, work.features.ids[:MIN_SHARED]


def _own_tokens(first: Work, work: Work) -> int:
    """Count the tokens that work adds beside work that begins alike."""
    ids = work.features.ids
    known = num_common(first.features.ids, ids, 0)
    return len(ids) - (known if known >= MIN_SHARED else 0)


def take_batch(
    waiting: Sequence[Work], max_tokens: int, enough_tokens: int | None = None
) -> list[Work]:
    """Choose one model's next batch from its work, in turn.

    The first work always goes, even where it alone costs more than ``max_tokens``; beside it goes
    what fits within them, by what a batch costs the model. ``enough_tokens`` keeps a batch shorter,
    save that work which begins as the first does goes along up to four times the first's cost.
    """
    window = waiting[:_WINDOW]
    enough = max_tokens if enough_tokens is None else min(enough_tokens, max_tokens)
    match waiting[0].cost:
        case BatchCost.ALONE:
            return [waiting[0]]
        case BatchCost.PADDED:
            return _of_like_length(window, enough)
        case BatchCost.PACKED:
            return _whatever_fits(window, enough)
        case BatchCost.SHARED:
            least = min(_TIMES_FIRST * waiting[0].features.num_tokens, max_tokens)
            return _of_like_beginning(window, max(enough, least))


def _of_like_length(waiting: Sequence[Work], max_tokens: int) -> list[Work]:
    """Take the first and its neighbours in length: a batch costs its longest times its number."""
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
    """Take the first with those that begin alike, whose beginning is computed once.

    Other groups follow in the order of their first, each only where all of it fits: a group that
    is torn apart computes its beginning again.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[Work, int]]] = {}
    for work in waiting:
        group = groups.setdefault(_beginning(work), [])
        cost = _own_tokens(group[0][0], work) if group else work.features.num_tokens
        group.append((work, cost))
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
