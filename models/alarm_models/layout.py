"""Many samples laid end to end in one row, what they share laid down once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alarm_models.sample import Span

__all__ = ["MIN_SHARED", "Layout", "Run", "lay_out", "num_common"]

#: A shared beginning shorter than this is not worth a run of its own.
MIN_SHARED = 16

#: Token ids, or token ids with their types.
Ids = tuple[int, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens ``[start, end)`` of the row that belong together.

    The tokens from ``end`` up to ``reach`` go on from this run: they see all of its tokens.
    """

    start: int
    end: int
    reach: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A row of runs, in which a run's continuations follow it directly.

    ``ids`` and ``positions`` (a token's place in its sample) are ``[tokens]``. ``pieces`` holds for
    each sample the spans of the row that make it up, in order; ``num_computed`` how many tokens it
    brought that no sample laid down before it had.
    """

    ids: list[int | tuple[int, int]]
    positions: list[int]
    runs: list[Run]
    pieces: list[tuple[Span, ...]]
    num_computed: list[int]

    @property
    def longest(self) -> int:
        """The length of the longest sample."""
        return max(map(self.length, range(len(self.pieces))))

    @property
    def is_shared(self) -> bool:
        """Whether any run goes on in others."""
        return any(run.reach > run.end for run in self.runs)

    def length(self, sample: int) -> int:
        """Return how many tokens a sample has."""
        return sum(end - start for start, end in self.pieces[sample])

    def places(self, sample: int, tokens: Span) -> list[int]:
        """Return where in the row a sample's tokens stand."""
        places: list[int] = []
        passed = 0
        for start, end in self.pieces[sample]:
            first, last = max(tokens.start - passed, 0), min(tokens.end - passed, end - start)
            places.extend(range(start + first, start + last))
            passed += end - start
        return places


def lay_out(samples: Sequence[Ids], *, share: bool) -> Layout:
    """Lay samples of token ids out in one row.

    Identical samples are laid down once. With ``share``, samples that begin with the same ids have
    that beginning laid down once, on any number of levels; that is right for causal models alone.
    """
    builder = _Builder(samples)
    order = sorted(range(len(samples)), key=lambda index: samples[index])
    if share:
        builder.grow(order, 0, ())
    else:
        alike: dict[Ids, list[int]] = {}
        for index, sample in enumerate(samples):
            alike.setdefault(sample, []).append(index)
        for group in alike.values():
            builder.lay(group, 0, len(samples[group[0]]), ())
    return Layout(builder.ids, builder.positions, builder.runs, builder.pieces, builder.computed)


class _Builder:
    def __init__(self, samples: Sequence[Ids]) -> None:
        self._samples = samples
        self.ids: list[int | tuple[int, int]] = []
        self.positions: list[int] = []
        self.runs: list[Run] = []
        self.pieces: list[tuple[Span, ...]] = [()] * len(samples)
        self.computed = [0] * len(samples)

    def grow(self, order: Sequence[int], depth: int, path: tuple[Span, ...]) -> None:
        """Lay down samples, sorted, whose first ``depth`` ids are in the row as ``path``."""
        for group in self._groups(order, depth):
            first, last = self._samples[group[0]], self._samples[group[-1]]
            self.lay(group, depth, num_common(first, last, depth), path)

    def lay(self, group: Sequence[int], depth: int, end: int, path: tuple[Span, ...]) -> None:
        """Lay down ids ``[depth, end)`` that a group shares, then what follows them."""
        start = len(self.ids)
        self.ids.extend(self._samples[group[0]][depth:end])
        self.positions.extend(range(depth, end))
        span = Span(start, len(self.ids))
        self.computed[group[0]] += end - depth
        index = len(self.runs)
        self.runs.append(Run(*span, span.end))
        path = (*path, span) if span.end > span.start else path
        for sample in group:
            if len(self._samples[sample]) == end:
                self.pieces[sample] = path
        rest = [sample for sample in group if len(self._samples[sample]) > end]
        if rest:
            self.grow(rest, end, path)
            self.runs[index] = Run(*span, len(self.ids))

    def _groups(self, order: Sequence[int], depth: int) -> Iterator[list[int]]:
        """Split sorted samples where neighbours share too little beyond ``depth``."""
        group: list[int] = []
        for index in order:
            if group:
                before, after = self._samples[group[-1]], self._samples[index]
                common = num_common(before, after, depth)
                if common < depth + MIN_SHARED and before != after:
                    yield group
                    group = []
            group.append(index)
        if group:
            yield group


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
