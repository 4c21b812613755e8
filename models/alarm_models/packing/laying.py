"""Lays many samples end to end in one row, what they share once, what is remembered not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alarm_models.packing.beginnings import MIN_SHARED, Ids, num_common
from alarm_models.packing.layout import Layout, Run
from alarm_models.packing.memory import Known, Memory
from alarm_models.sample import Span

__all__ = ["lay_out"]


def lay_out(
    samples: Sequence[Ids],
    *,
    share: bool,
    memory: Memory | None = None,
    first_reads: Sequence[int] | None = None,
    owners: Sequence[str] | None = None,
) -> Layout:
    """Lay samples of token ids out in one row.

    Identical samples are laid down once. With ``share``, samples that begin with the same ids have
    that beginning laid down once, on any number of levels; that is right for causal models alone.
    What ``memory`` knows of a beginning is not laid down at all, up to each sample's first read:
    what is read has to run. Samples of different ``owners`` share nothing, be they identical.
    """
    owners = owners or [""] * len(samples)
    builder = _Builder(samples, first_reads or [0] * len(samples), owners)
    order = sorted(range(len(samples)), key=lambda index: (owners[index], samples[index]))
    if share:
        builder.grow(order, 0, (), memory)
    else:
        alike: dict[tuple[str, Ids], list[int]] = {}
        for index, sample in enumerate(samples):
            alike.setdefault((owners[index], sample), []).append(index)
        for group in alike.values():
            builder.lay(group, 0, len(samples[group[0]]), (), None)
    return builder.layout


class _Builder:
    def __init__(
        self, samples: Sequence[Ids], first_reads: Sequence[int], owners: Sequence[str]
    ) -> None:
        self._samples = samples
        self._owners = owners
        self._first_reads = first_reads
        self._num_keys = 0
        num = len(samples)
        self.layout = Layout([], [], [], [], [()] * num, [0] * num)

    def grow(
        self, order: Sequence[int], depth: int, path: tuple[Span, ...], memory: Memory | None
    ) -> None:
        """Lay down samples, sorted, whose first ``depth`` ids have their keys at ``path``."""
        for group in self._groups(order, depth):
            first, last = self._samples[group[0]], self._samples[group[-1]]
            self.lay(group, depth, num_common(first, last, depth), path, memory)

    def lay(
        self,
        group: Sequence[int],
        depth: int,
        end: int,
        path: tuple[Span, ...],
        memory: Memory | None,
    ) -> None:
        """Lay down ids ``[depth, end)`` that a group shares, then what follows them.

        ``memory`` is given while all before ``depth`` is known.
        """
        known = self._recall(group, depth, end, memory)
        if known is None:
            self._lay_new(group, depth, end, path)
            return
        keys = self._next_keys(len(known))
        self.layout.known.append((keys, known))
        here = Span(len(self.layout.ids), len(self.layout.ids))
        index = self._open(Run(keys, here, here.end))
        depth += len(known)
        if depth < end:
            self._lay_new(group, depth, end, (*path, keys))
        else:
            self.grow(group, end, (*path, keys), memory)
        self._close(index)

    def _recall(
        self, group: Sequence[int], depth: int, end: int, memory: Memory | None
    ) -> Known | None:
        if memory is None:
            return None
        end = min(end, *(self._first_reads[sample] for sample in group))
        return memory.recall(self._samples[group[0]][:end], depth, self._owners[group[0]])

    def _lay_new(self, group: Sequence[int], depth: int, end: int, path: tuple[Span, ...]) -> None:
        layout = self.layout
        row = Span(len(layout.ids), len(layout.ids) + end - depth)
        keys = self._next_keys(end - depth)
        layout.ids.extend(self._samples[group[0]][depth:end])
        layout.positions.extend(range(depth, end))
        layout.num_computed[group[0]] += end - depth
        index = self._open(Run(keys, row, row.end))
        path = (*path, keys) if keys.end > keys.start else path
        for sample in group:
            if len(self._samples[sample]) == end:
                layout.pieces[sample] = path
        rest = [sample for sample in group if len(self._samples[sample]) > end]
        if rest:
            self.grow(rest, end, path, None)
            self._close(index)

    def _next_keys(self, count: int) -> Span:
        keys = Span(self._num_keys, self._num_keys + count)
        self._num_keys = keys.end
        return keys

    def _open(self, run: Run) -> int:
        self.layout.runs.append(run)
        return len(self.layout.runs) - 1

    def _close(self, index: int) -> None:
        runs = self.layout.runs
        runs[index] = runs[index]._replace(reach=len(self.layout.ids))

    def _groups(self, order: Sequence[int], depth: int) -> Iterator[list[int]]:
        """Split sorted samples where neighbours share too little beyond ``depth``."""
        group: list[int] = []
        for index in order:
            if group:
                before, after = self._samples[group[-1]], self._samples[index]
                common = num_common(before, after, depth)
                is_same = self._owners[group[-1]] == self._owners[index]
                if not is_same or (common < depth + MIN_SHARED and before != after):
                    yield group
                    group = []
            group.append(index)
        if group:
            yield group
