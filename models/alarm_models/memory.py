"""The keys and values of rows that ran before, so that a prompt seen again is not run again."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from alarm_models.beginnings import MIN_SHARED, Ids, num_common
from alarm_models.sample import Span

__all__ = ["Known", "Memory", "Past", "spans_within"]


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """A row that ran: its samples, where their keys stand, and each layer's keys and values.

    ``pieces`` holds for each sample the spans of the keys that make it up, in order; ``layers``
    for each layer keys and values, ``[1, heads, keys, dim]`` each.
    """

    samples: Sequence[Ids]
    pieces: Sequence[Sequence[Span]]
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]

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


class Memory:
    """Keeps past rows, the newest as long as all together stay under a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pasts: deque[Past] = deque()
        self._by_beginning: dict[Ids, list[tuple[Past, int]]] = {}

    @property
    def num_bytes(self) -> int:
        """Count the bytes that are kept."""
        return sum(past.num_bytes for past in self._pasts)

    def recall(self, ids: Ids, depth: int) -> Known | None:
        """Find the ids from ``depth`` on, as many as are known; None for too few to be worth it."""
        best: tuple[int, Past, int] | None = None
        for past, sample in self._by_beginning.get(ids[:MIN_SHARED], ()):
            known = num_common(past.samples[sample], ids, 0)
            if best is None or known > best[0]:
                best = (known, past, sample)
        if best is None or best[0] < depth + MIN_SHARED:
            return None
        end, past, sample = best
        return Known(past, tuple(spans_within(past.pieces[sample], Span(depth, end))))

    def remember(self, past: Past) -> None:
        """Keep a row, and forget the oldest where that is one too many."""
        if past.num_bytes > self._max_bytes:
            return
        self._pasts.append(past)
        while self.num_bytes > self._max_bytes:
            self._pasts.popleft()
        self._index()

    def forget(self) -> None:
        """Keep nothing."""
        self._pasts.clear()
        self._by_beginning.clear()

    def _index(self) -> None:
        self._by_beginning = {}
        for past in self._pasts:
            for sample, ids in enumerate(past.samples):
                if len(ids) >= MIN_SHARED:
                    self._by_beginning.setdefault(ids[:MIN_SHARED], []).append((past, sample))


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
