"""The keys and values of rows that ran before, so that a prompt seen again is not run again."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from alarm_models.packing.beginnings import MIN_SHARED, Ids, num_common
from alarm_models.sample import Span

__all__ = ["Known", "Memory", "Past", "spans_within"]

#: Rows that are kept, however small: a prompt that is seen again is mostly seen soon.
_MAX_ROWS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """A row that ran: its samples, where their keys stand, and each layer's keys and values.

    ``pieces`` holds for each sample the spans of the keys that make it up, in order; ``layers``
    for each layer keys and values, ``[1, heads, keys, dim]`` each; ``owners`` whose each sample is,
    where that is not the same nobody for all.
    """

    samples: Sequence[Ids]
    pieces: Sequence[Sequence[Span]]
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    owners: Sequence[str] = ()

    @property
    def num_bytes(self) -> int:
        """Count the bytes that it keeps from being freed."""
        tensors = (tensor for pair in self.layers.values() for tensor in pair)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Tokens of a sample that a past row holds, as spans of that row's keys."""

    past: Past
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        """Count the tokens."""
        return sum(end - start for start, end in self.spans)


class _Entry(NamedTuple):
    """A sample of a past row, by its owner and its ids."""

    owner: str
    ids: Ids
    past: Past
    sample: int


class Memory:
    """Keeps past rows, the newest as long as all together stay under a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pasts: deque[Past] = deque()
        #: Sorted by ids: who begins most like some ids stands next to where they would stand.
        self._entries: list[_Entry] = []
        self.num_bytes = 0

    def recall(self, ids: Ids, depth: int, owner: str = "") -> Known | None:
        """Find an owner's ids from ``depth`` on, as many as are known.

        None for too few to be worth it.
        """
        at = bisect_left(self._entries, (owner, ids), key=_key)
        near = self._entries[max(at - 1, 0) : at + 1]
        end, best = max(
            ((num_common(entry.ids, ids, 0), entry) for entry in near if entry.owner == owner),
            key=lambda found: found[0],
            default=(0, None),
        )
        if best is None or end < depth + MIN_SHARED:
            return None
        pieces = best.past.pieces[best.sample]
        return Known(best.past, tuple(spans_within(pieces, Span(depth, end))))

    def remember(self, past: Past) -> None:
        """Keep a row, and forget the oldest where those are too many."""
        if past.num_bytes > self._max_bytes:
            return
        self._pasts.append(past)
        self.num_bytes += past.num_bytes
        for sample, ids in enumerate(past.samples):
            if len(ids) >= MIN_SHARED:
                owner = past.owners[sample] if past.owners else ""
                insort(self._entries, _Entry(owner, ids, past, sample), key=_key)
        while self.num_bytes > self._max_bytes or len(self._pasts) > _MAX_ROWS:
            self._forget_oldest()

    def forget(self) -> None:
        """Keep nothing."""
        self._pasts.clear()
        self._entries.clear()
        self.num_bytes = 0

    def _forget_oldest(self) -> None:
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
