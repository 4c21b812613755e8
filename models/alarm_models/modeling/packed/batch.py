"""The packed batch, samples in one row as a prefix tree, and the forward context.

Also known as sequence packing or ragged batching: no padding, prefill of a shared prefix once.
"""

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
    BatchKV,
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
    """A node of the prefix tree: the spans of its keys in the batch and of its tokens in the row.

    ``row`` is empty for tokens that are cached. The row's tokens from ``row.end`` up to
    ``subtree_end`` are its descendants': they attend to all of its keys.
    """

    keys: Span
    row: Span
    subtree_end: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Samples in one row, as the nodes of a prefix tree in depth-first order.

    ``ids`` and ``positions`` (the index of a token in its sample) describe the row's tokens. The
    keys are those of the row with the ``cached`` ones in between, in node order. ``key_spans`` has
    for each sample the spans of its keys, in order; ``num_computed`` the number of row tokens that
    no earlier sample has.
    """

    ids: list[int | tuple[int, int]]
    positions: list[int]
    nodes: list[PrefixNode]
    cached: list[tuple[Span, CacheHit]]
    key_spans: list[tuple[Span, ...]]
    num_computed: list[int]

    @property
    def num_keys(self) -> int:
        """Count the keys: the row's tokens and the cached ones."""
        return len(self.ids) + sum(len(hit) for _, hit in self.cached)

    @property
    def longest(self) -> int:
        """The length of the longest sample."""
        return max(map(self.length, range(len(self.key_spans))))

    @property
    def is_shared(self) -> bool:
        """Whether any node has descendants."""
        return any(node.subtree_end > node.row.end for node in self.nodes)

    def is_cut_by(self, window: int) -> bool:
        """Return whether a sliding window is shorter than some sample.

        Raises `ValueError` if samples share a prefix that is partly outside the window.
        """
        if self.longest <= window:
            return False
        if self.is_shared:
            raise ValueError("samples longer than the model's window cannot share a prefix")
        return True

    def length(self, sample: int) -> int:
        """Return the number of tokens of a sample."""
        return sum(end - start for start, end in self.key_spans[sample])

    def keys(self, sample: int, tokens: Span) -> list[int]:
        """Return the indices of a sample's keys."""
        spans = spans_within(self.key_spans[sample], tokens)
        return [place for span in spans for place in range(*span)]

    def positions_in_batch(self, sample: int, tokens: Span) -> list[int]:
        """Return the row indices of a sample's tokens, none of which may be cached."""
        keys = self.keys(sample, tokens)
        if not self.cached:
            return keys
        places = []
        for key in keys:
            node = self.nodes[bisect_right(self.nodes, key, key=_first_key) - 1]
            places.append(node.row.start + key - node.keys.start)
        return places


def _first_key(node: PrefixNode) -> int:
    return node.keys.start


def pack(
    samples: Sequence[Ids],
    *,
    share: bool,
    prefix_cache: PrefixCache | None = None,
    first_reads: Sequence[int] | None = None,
    owners: Sequence[str] | None = None,
) -> PackedBatch:
    """Pack samples of token ids into one row.

    Identical samples are packed once. With ``share``, common prefixes are packed once, on any
    number of levels; this is valid for causal models only. Prefixes in ``prefix_cache`` are not
    packed, except from a sample's first read position on, which must be computed. Samples of
    different ``owners`` share nothing, even if identical.
    """
    owners = owners or [""] * len(samples)
    builder = _PrefixTreeBuilder(samples, first_reads or [0] * len(samples), owners)
    order = sorted(range(len(samples)), key=lambda index: (owners[index], samples[index]))
    if share:
        builder.add_children(order, 0, (), prefix_cache)
    else:
        alike: dict[tuple[str, Ids], list[int]] = {}
        for index, sample in enumerate(samples):
            alike.setdefault((owners[index], sample), []).append(index)
        for group in alike.values():
            builder.add_node(group, 0, len(samples[group[0]]), (), None)
    return builder.batch


class _PrefixTreeBuilder:
    def __init__(
        self, samples: Sequence[Ids], first_reads: Sequence[int], owners: Sequence[str]
    ) -> None:
        self._samples = samples
        self._owners = owners
        self._first_reads = first_reads
        self._num_keys = 0
        num = len(samples)
        self.batch = PackedBatch([], [], [], [], [()] * num, [0] * num)

    def add_children(
        self, order: Sequence[int], depth: int, path: tuple[Span, ...], cache: PrefixCache | None
    ) -> None:
        """Add sorted samples whose first ``depth`` ids have their keys at ``path``."""
        for group in self._groups(order, depth):
            first, last = self._samples[group[0]], self._samples[group[-1]]
            self.add_node(group, depth, common_prefix_length(first, last, depth), path, cache)

    def add_node(
        self,
        group: Sequence[int],
        depth: int,
        end: int,
        path: tuple[Span, ...],
        cache: PrefixCache | None,
    ) -> None:
        """Add the shared ids ``[depth, end)`` of a group, then its children.

        ``cache`` is set while everything before ``depth`` is cached.
        """
        hit = self._lookup(group, depth, end, cache)
        if hit is None:
            self._append_node(group, depth, end, path)
            return
        keys = self._next_keys(len(hit))
        self.batch.cached.append((keys, hit))
        row = Span(len(self.batch.ids), len(self.batch.ids))
        index = self._open(PrefixNode(keys, row, row.end))
        depth += len(hit)
        if depth < end:
            self._append_node(group, depth, end, (*path, keys))
        else:
            self.add_children(group, end, (*path, keys), cache)
        self._close(index)

    def _lookup(
        self, group: Sequence[int], depth: int, end: int, cache: PrefixCache | None
    ) -> CacheHit | None:
        if cache is None:
            return None
        end = min(end, *(self._first_reads[sample] for sample in group))
        return cache.lookup(self._samples[group[0]][:end], depth, self._owners[group[0]])

    def _append_node(
        self, group: Sequence[int], depth: int, end: int, path: tuple[Span, ...]
    ) -> None:
        batch = self.batch
        row = Span(len(batch.ids), len(batch.ids) + end - depth)
        keys = self._next_keys(end - depth)
        batch.ids.extend(self._samples[group[0]][depth:end])
        batch.positions.extend(range(depth, end))
        batch.num_computed[group[0]] += end - depth
        index = self._open(PrefixNode(keys, row, row.end))
        path = (*path, keys) if keys.end > keys.start else path
        for sample in group:
            if len(self._samples[sample]) == end:
                batch.key_spans[sample] = path
        rest = [sample for sample in group if len(self._samples[sample]) > end]
        if rest:
            self.add_children(rest, end, path, None)
            self._close(index)

    def _next_keys(self, count: int) -> Span:
        keys = Span(self._num_keys, self._num_keys + count)
        self._num_keys = keys.end
        return keys

    def _open(self, node: PrefixNode) -> int:
        self.batch.nodes.append(node)
        return len(self.batch.nodes) - 1

    def _close(self, index: int) -> None:
        nodes = self.batch.nodes
        nodes[index] = nodes[index]._replace(subtree_end=len(self.batch.ids))

    def _groups(self, order: Sequence[int], depth: int) -> Iterator[list[int]]:
        """Split sorted samples where neighbors share too little beyond ``depth``."""
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

_context: ContextVar[ForwardContext] = ContextVar("forward_context")


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """The input of a forward pass: a packed batch and its read positions.

    ``reads`` has the sample and the position in it of each read; ``read_places`` the index in the
    row. ``kv`` inserts cached keys and values and stores new ones, if there is a prefix cache.
    """

    batch: PackedBatch
    reads: Sequence[tuple[int, int]]
    read_places: Sequence[int]
    kv: BatchKV | None = None
    _derived: dict[object, Any] = field(default_factory=dict)

    def derived(self, make: Callable[[PackedBatch, *_Ts], _T], *arguments: *_Ts) -> _T:
        """Return a value derived from the batch and arguments, computed once for all layers."""
        if (make, arguments) not in self._derived:
            self._derived[make, arguments] = make(self.batch, *arguments)
        value: _T = self._derived[make, arguments]
        return value

    def with_cached_kv(
        self, module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Insert the cached ones into a layer's keys and values, ``[1, heads, tokens, dim]``.

        Returns ``[1, heads, keys, dim]`` each.
        """
        if self.kv is None:
            return key, value
        return self.kv.update(int(module.layer_idx), key, value)  # type: ignore[arg-type]


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Set the context of the forward pass in this block."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def get_forward_context() -> ForwardContext:
    """Return the context of the running forward pass."""
    return _context.get()
