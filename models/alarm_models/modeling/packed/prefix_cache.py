"""PrefixCache: keys and values of earlier batches, found by bisection, evicted by bytes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from alarm_models.types import Span

__all__ = [
    "MIN_SHARED_PREFIX",
    "CacheHit",
    "CachedBatch",
    "Ids",
    "PrefixCache",
    "common_prefix_length",
    "spans_within",
]

#: A shared beginning shorter than this is not worth a run of its own.
MIN_SHARED_PREFIX = 16

#: Token ids, or token ids with their types.
Ids = tuple[int, ...] | tuple[tuple[int, int], ...]


def common_prefix_length(one: Ids, other: Ids, known: int) -> int:
    """Count the ids that two samples begin with alike; the first ``known`` are known to be."""
    low, high = known, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


#: Rows that are kept, however small: a prompt that is seen again is mostly seen soon.
_MAX_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class CachedBatch:
    """A row that ran: its samples, where their keys stand, and each layer's keys and values.

    ``pieces`` holds for each sample the spans of the keys that make it up, in order; ``layers``
    for each layer keys and values, ``[1, heads, keys, dim]`` each; ``owners`` whose each sample is,
    where that is not the same nobody for all.
    """

    samples: Sequence[Ids]
    key_spans: Sequence[Sequence[Span]]
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    owners: Sequence[str] = ()

    @property
    def num_bytes(self) -> int:
        """Count the bytes that it keeps from being freed."""
        tensors = (tensor for pair in self.layers.values() for tensor in pair)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@dataclass(frozen=True, slots=True, eq=False)
class CacheHit:
    """Tokens of a sample that a past row holds, as spans of that row's keys."""

    batch: CachedBatch
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        """Count the tokens."""
        return sum(end - start for start, end in self.spans)


class _Entry(NamedTuple):
    """A sample of a past row, by its owner and its ids."""

    owner: str
    ids: Ids
    past: CachedBatch
    sample: int


class PrefixCache:
    """Keeps past rows, the newest as long as all together stay under a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pasts: deque[CachedBatch] = deque()
        #: Sorted by ids: who begins most like some ids stands next to where they would stand.
        self._entries: list[_Entry] = []
        self.num_bytes = 0

    def lookup(self, ids: Ids, depth: int, owner: str = "") -> CacheHit | None:
        """Find an owner's ids from ``depth`` on, as many as are known.

        None for too few to be worth it.
        """
        at = bisect_left(self._entries, (owner, ids), key=_key)
        near = self._entries[max(at - 1, 0) : at + 1]
        end, best = max(
            (
                (common_prefix_length(entry.ids, ids, 0), entry)
                for entry in near
                if entry.owner == owner
            ),
            key=lambda found: found[0],
            default=(0, None),
        )
        if best is None or end < depth + MIN_SHARED_PREFIX:
            return None
        pieces = best.past.key_spans[best.sample]
        return CacheHit(best.past, tuple(spans_within(pieces, Span(depth, end))))

    def insert(self, past: CachedBatch) -> None:
        """Keep a row, and forget the oldest where those are too many."""
        if past.num_bytes > self._max_bytes:
            return
        self._pasts.append(past)
        self.num_bytes += past.num_bytes
        for sample, ids in enumerate(past.samples):
            if len(ids) >= MIN_SHARED_PREFIX:
                owner = past.owners[sample] if past.owners else ""
                insort(self._entries, _Entry(owner, ids, past, sample), key=_key)
        while self.num_bytes > self._max_bytes or len(self._pasts) > _MAX_ROWS:
            self._evict_oldest()

    def clear(self) -> None:
        """Keep nothing."""
        self._pasts.clear()
        self._entries.clear()
        self.num_bytes = 0

    def _evict_oldest(self) -> None:
        oldest = self._pasts.popleft()
        self.num_bytes -= oldest.num_bytes
        self._entries = [entry for entry in self._entries if entry.past is not oldest]


def _key(entry: _Entry) -> tuple[str, Ids]:
    return entry.owner, entry.ids


def spans_within(pieces: Sequence[Span], tokens: Span) -> list[Span]:
    """Return where a span of a sample's tokens stands, given the spans that make the sample up."""
    found: list[Span] = []
    passed = 0
    for start, end in pieces:
        first, last = max(tokens.start - passed, 0), min(tokens.end - passed, end - start)
        if first < last:
            found.append(Span(start + first, start + last))
        passed += end - start
    return found
