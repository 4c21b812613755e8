"""PackedBatch: samples in one row as a prefix tree, how it is built, and the forward context."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import torch

from alarm_models.modeling.packed.prefix_cache import (
    MIN_SHARED_PREFIX,
    CachedBatch,
    CacheHit,
    Ids,
    PrefixCache,
    common_prefix_length,
    spans_within,
)
from alarm_models.types import Span

__all__ = [
    "ForwardContext",
    "PackedBatch",
    "PrefixNode",
    "forward_context",
    "get_forward_context",
    "pack",
]


class PrefixNode(NamedTuple):
    """Tokens that belong together: where their keys stand, and where they stand in the row.

    ``row`` is empty for tokens whose keys are remembered. The row's tokens from ``row.end`` up to
    ``reach`` go on from this run: they see all of its keys.
    """

    keys: Span
    row: Span
    subtree_end: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """A row of runs, in which a run's continuations follow it directly.

    ``ids`` and ``positions`` (a token's place in its sample) are those of the row's tokens. Keys
    are the row's, and between them, in the order of the runs, those that are ``known`` from rows
    before. ``pieces`` holds for each sample the spans of the keys that make it up, in order;
    ``num_computed`` how many tokens it brought that nobody laid down before it.
    """

    ids: list[int | tuple[int, int]]
    positions: list[int]
    nodes: list[PrefixNode]
    cached: list[tuple[Span, CacheHit]]
    key_spans: list[tuple[Span, ...]]
    num_computed: list[int]

    @property
    def num_keys(self) -> int:
        """Count the keys: the row's tokens and the known ones."""
        return len(self.ids) + sum(len(known) for _, known in self.cached)

    @property
    def longest(self) -> int:
        """The length of the longest sample."""
        return max(map(self.length, range(len(self.key_spans))))

    @property
    def is_shared(self) -> bool:
        """Whether any run goes on in others."""
        return any(run.subtree_end > run.row.end for run in self.nodes)

    def is_cut_by(self, window: int) -> bool:
        """Say whether a sliding window keeps tokens from seeing all of their samples.

        Raises `ValueError` where samples share a beginning that some of them no longer see.
        """
        if self.longest <= window:
            return False
        if self.is_shared:
            raise ValueError("samples longer than the model's window cannot share a beginning")
        return True

    def length(self, sample: int) -> int:
        """Return how many tokens a sample has."""
        return sum(end - start for start, end in self.key_spans[sample])

    def keys(self, sample: int, tokens: Span) -> list[int]:
        """Return where the keys of a sample's tokens stand."""
        spans = spans_within(self.key_spans[sample], tokens)
        return [place for span in spans for place in range(*span)]

    def positions_in_batch(self, sample: int, tokens: Span) -> list[int]:
        """Return where in the row a sample's tokens stand; none of them may be known."""
        keys = self.keys(sample, tokens)
        if not self.cached:
            return keys
        places = []
        for key in keys:
            run = self.nodes[bisect_right(self.nodes, key, key=_first_key) - 1]
            places.append(run.row.start + key - run.keys.start)
        return places


def _first_key(run: PrefixNode) -> int:
    return run.keys.start


def pack(
    samples: Sequence[Ids],
    *,
    share: bool,
    memory: PrefixCache | None = None,
    first_reads: Sequence[int] | None = None,
    owners: Sequence[str] | None = None,
) -> PackedBatch:
    """Lay samples of token ids out in one row.

    Identical samples are laid down once. With ``share``, samples that begin with the same ids have
    that beginning laid down once, on any number of levels; that is right for causal models alone.
    What ``memory`` knows of a beginning is not laid down at all, up to each sample's first read:
    what is read has to run. Samples of different ``owners`` share nothing, be they identical.
    """
    owners = owners or [""] * len(samples)
    builder = _PrefixTreeBuilder(samples, first_reads or [0] * len(samples), owners)
    order = sorted(range(len(samples)), key=lambda index: (owners[index], samples[index]))
    if share:
        builder.add_children(order, 0, (), memory)
    else:
        alike: dict[tuple[str, Ids], list[int]] = {}
        for index, sample in enumerate(samples):
            alike.setdefault((owners[index], sample), []).append(index)
        for group in alike.values():
            builder.add_node(group, 0, len(samples[group[0]]), (), None)
    return builder.layout


class _PrefixTreeBuilder:
    def __init__(
        self, samples: Sequence[Ids], first_reads: Sequence[int], owners: Sequence[str]
    ) -> None:
        self._samples = samples
        self._owners = owners
        self._first_reads = first_reads
        self._num_keys = 0
        num = len(samples)
        self.layout = PackedBatch([], [], [], [], [()] * num, [0] * num)

    def add_children(
        self, order: Sequence[int], depth: int, path: tuple[Span, ...], memory: PrefixCache | None
    ) -> None:
        """Lay down samples, sorted, whose first ``depth`` ids have their keys at ``path``."""
        for group in self._groups(order, depth):
            first, last = self._samples[group[0]], self._samples[group[-1]]
            self.add_node(group, depth, common_prefix_length(first, last, depth), path, memory)

    def add_node(
        self,
        group: Sequence[int],
        depth: int,
        end: int,
        path: tuple[Span, ...],
        memory: PrefixCache | None,
    ) -> None:
        """Lay down ids ``[depth, end)`` that a group shares, then what follows them.

        ``memory`` is given while all before ``depth`` is known.
        """
        known = self._lookup_cached(group, depth, end, memory)
        if known is None:
            self._append_node(group, depth, end, path)
            return
        keys = self._next_keys(len(known))
        self.layout.cached.append((keys, known))
        here = Span(len(self.layout.ids), len(self.layout.ids))
        index = self._open(PrefixNode(keys, here, here.end))
        depth += len(known)
        if depth < end:
            self._append_node(group, depth, end, (*path, keys))
        else:
            self.add_children(group, end, (*path, keys), memory)
        self._close(index)

    def _lookup_cached(
        self, group: Sequence[int], depth: int, end: int, memory: PrefixCache | None
    ) -> CacheHit | None:
        if memory is None:
            return None
        end = min(end, *(self._first_reads[sample] for sample in group))
        return memory.lookup(self._samples[group[0]][:end], depth, self._owners[group[0]])

    def _append_node(
        self, group: Sequence[int], depth: int, end: int, path: tuple[Span, ...]
    ) -> None:
        layout = self.layout
        row = Span(len(layout.ids), len(layout.ids) + end - depth)
        keys = self._next_keys(end - depth)
        layout.ids.extend(self._samples[group[0]][depth:end])
        layout.positions.extend(range(depth, end))
        layout.num_computed[group[0]] += end - depth
        index = self._open(PrefixNode(keys, row, row.end))
        path = (*path, keys) if keys.end > keys.start else path
        for sample in group:
            if len(self._samples[sample]) == end:
                layout.key_spans[sample] = path
        rest = [sample for sample in group if len(self._samples[sample]) > end]
        if rest:
            self.add_children(rest, end, path, None)
            self._close(index)

    def _next_keys(self, count: int) -> Span:
        keys = Span(self._num_keys, self._num_keys + count)
        self._num_keys = keys.end
        return keys

    def _open(self, run: PrefixNode) -> int:
        self.layout.nodes.append(run)
        return len(self.layout.nodes) - 1

    def _close(self, index: int) -> None:
        runs = self.layout.nodes
        runs[index] = runs[index]._replace(subtree_end=len(self.layout.ids))

    def _groups(self, order: Sequence[int], depth: int) -> Iterator[list[int]]:
        """Split sorted samples where neighbours share too little beyond ``depth``."""
        group: list[int] = []
        for index in order:
            if group:
                before, after = self._samples[group[-1]], self._samples[index]
                common = common_prefix_length(before, after, depth)
                is_same = self._owners[group[-1]] == self._owners[index]
                if not is_same or (common < depth + MIN_SHARED_PREFIX and before != after):
                    yield group
                    group = []
            group.append(index)
        if group:
            yield group


_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_context: ContextVar[ForwardContext] = ContextVar("row")


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """What a forward pass runs over: samples laid out, and the tokens of them that are read.

    ``reads`` holds each read's sample and its place in that sample; ``places`` its place in the
    row. ``layers`` gathers each layer's keys and values where ``is_remembered``.
    """

    batch: PackedBatch
    reads: Sequence[tuple[int, int]]
    read_places: Sequence[int]
    is_cached: bool = False
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _made: dict[object, Any] = field(default_factory=dict)

    def cached(self, make: Callable[[PackedBatch, *_Ts], _T], *given: *_Ts) -> _T:
        """Return what a function makes of the layout and more, made once for all layers."""
        if (make, given) not in self._made:
            self._made[make, given] = make(self.batch, *given)
        made: _T = self._made[make, given]
        return made

    def with_cached_kv(
        self, module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a layer's keys and values of the row, ``[1, heads, tokens, dim]``, among the known.

        Returns ``[1, heads, keys, dim]`` each.
        """
        if not self.is_cached:
            return key, value
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if self.batch.cached:
            key, value = self._among(key, layer, 0), self._among(value, layer, 1)
        self.layers[layer] = (key, value)
        return key, value

    def to_cached_batch(self, samples: Sequence[Ids], owners: Sequence[str] = ()) -> CachedBatch:
        """Return the row, once it has run, for those of the same owners that come after."""
        return CachedBatch(samples, self.batch.key_spans, self.layers, owners)

    def _among(self, states: torch.Tensor, layer: int, kind: int) -> torch.Tensor:
        """Put the row's keys (kind 0) or values (1) in their places among the known."""
        parts: list[torch.Tensor] = []
        num_placed = num_known = 0
        for (start, end), known in self.batch.cached:
            before, num_placed = num_placed, start - num_known
            past = known.batch.layers[layer][kind]
            parts.append(states[:, :, before:num_placed])
            parts += (past[:, :, slice(*span)] for span in known.spans)
            num_known += end - start
        return torch.cat([*parts, states[:, :, num_placed:]], 2)


@contextmanager
def forward_context(row: ForwardContext) -> Iterator[None]:
    """Say what the forward pass in this block runs over."""
    token = _context.set(row)
    try:
        yield
    finally:
        _context.reset(token)


def get_forward_context() -> ForwardContext:
    """Return what the forward pass that is running runs over."""
    return _context.get()
