"""The packed batch, samples in one row as a prefix tree, and the forward context.

Also known as sequence packing or ragged batching: no padding, prefill of a shared prefix once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
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

    def positions_in_batch(self, sample: int, spans: Sequence[Span]) -> list[int]:
        """Return the row indices of the tokens in spans of a sample, none of which may be cached.

        Finding a span takes logarithmic time in the number of nodes.
        """
        pieces = self.key_spans[sample]
        ends = list(accumulate(end - start for start, end in pieces))
        places: list[int] = []
        for start, end in spans:
            at = bisect_right(ends, start)
            while start < end:
                # From a token of the sample to its key, in the same piece.
                offset = pieces[at].end - ends[at] + self._row_offset(pieces[at])
                stop = min(end, ends[at])
                places += range(start + offset, stop + offset)
                start, at = stop, at + 1
        return places

    def _row_offset(self, piece: Span) -> int:
        """Return what leads from a node's keys to their places in the row."""
        if not self.cached:
            return 0
        node = self.nodes[bisect_right(self.nodes, piece.start, key=_first_key) - 1]
        return node.row.start - node.keys.start


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
    if share:
        builder.add_tree(prefix_cache)
    else:
        builder.add_samples()
    return builder.batch


#: Stands for what samples with the same ids share: they are never told apart.
_ALL = 1 << 62


class _Branch(NamedTuple):
    """Sorted samples ``[start, stop)`` that share more than the first ``depth`` ids.

    They share ``end`` ids. The keys of the first ``depth`` are at ``path``; ``cache`` is set while
    all of them are cached.
    """

    start: int
    stop: int
    depth: int
    end: int
    path: tuple[Span, ...]
    cache: PrefixCache | None


class _PrefixTreeBuilder:
    """Adds the nodes of a batch in depth-first order, without recursion: chains may be long.

    Going through a branch's samples takes linear time in total, since each further level has
    `MIN_SHARED_PREFIX` tokens of each of its samples.
    """

    def __init__(
        self, samples: Sequence[Ids], first_reads: Sequence[int], owners: Sequence[str]
    ) -> None:
        self._samples = samples
        self._owners = owners
        self._first_reads = first_reads
        self._num_keys = 0
        #: The samples in order, and how many ids each shares with the one before it.
        self._order: list[int] = []
        self._common: list[int] = []
        num = len(samples)
        self.batch = PackedBatch([], [], [], [], [()] * num, [0] * num)

    def add_samples(self) -> None:
        """Add the samples without sharing, identical ones once."""
        alike: dict[tuple[str, Ids], list[int]] = {}
        for index, sample in enumerate(self._samples):
            alike.setdefault((self._owners[index], sample), []).append(index)
        for group in alike.values():
            self._append_node(group, 0, len(self._samples[group[0]]), ())

    def add_tree(self, cache: PrefixCache | None) -> None:
        """Add the samples as a prefix tree."""
        indices = range(len(self._samples))
        self._order = sorted(indices, key=lambda index: (self._owners[index], self._samples[index]))
        self._common = [0, *(self._num_common(*pair) for pair in pairwise(self._order))]
        # Branches to add, and between them the nodes whose descendants have been added.
        left: list[_Branch | int] = self._branches(0, len(self._order), 0, (), cache)[::-1]
        while left:
            one = left.pop()
            if isinstance(one, int):
                self._close(one)
            else:
                left += reversed(self._add(one))

    def _num_common(self, before: int, after: int) -> int:
        if self._owners[before] != self._owners[after]:
            return -1
        if self._samples[before] == self._samples[after]:
            return _ALL
        return common_prefix_length(self._samples[before], self._samples[after], 0)

    def _branches(
        self, start: int, stop: int, depth: int, path: tuple[Span, ...], cache: PrefixCache | None
    ) -> list[_Branch | int]:
        """Split sorted samples where neighbors share too little beyond ``depth``."""
        limit = depth + MIN_SHARED_PREFIX
        splits = [at for at in range(start + 1, stop) if self._common[at] < limit]
        bounds = [start, *splits, stop] if start < stop else []
        return [
            _Branch(first, last, depth, self._end(first, last), path, cache)
            for first, last in pairwise(bounds)
        ]

    def _end(self, start: int, stop: int) -> int:
        """Return the number of ids that sorted samples share."""
        return min([len(self._samples[self._order[start]]), *self._common[start + 1 : stop]])

    def _add(self, branch: _Branch) -> list[_Branch | int]:
        """Add the ids that a branch's samples share; return what is to be added after them."""
        start, stop, depth, end, path, cache = branch
        group = self._order[start:stop]
        hit = self._lookup(group, depth, end, cache)
        if hit is None:
            return self._append_branch(branch, group)
        keys = self._next_keys(len(hit))
        self.batch.cached.append((keys, hit))
        row = Span(len(self.batch.ids), len(self.batch.ids))
        index = self._open(PrefixNode(keys, row, row.end))
        depth, path = depth + len(hit), (*path, keys)
        if depth < end:
            rest = branch._replace(depth=depth, path=path)
            return [*self._append_branch(rest, group), index]
        return [*self._branches(start, stop, end, path, cache), index]

    def _append_branch(self, branch: _Branch, group: Sequence[int]) -> list[_Branch | int]:
        end = branch.end
        index, path = self._append_node(group, branch.depth, end, branch.path)
        # Sorted, those that end here come first.
        num_ended = sum(len(self._samples[sample]) == end for sample in group)
        rest = self._branches(branch.start + num_ended, branch.stop, end, path, None)
        return [*rest, index]

    def _lookup(
        self, group: Sequence[int], depth: int, end: int, cache: PrefixCache | None
    ) -> CacheHit | None:
        if cache is None:
            return None
        end = min(end, *(self._first_reads[sample] for sample in group))
        return cache.lookup(self._samples[group[0]][:end], depth, self._owners[group[0]])

    def _append_node(
        self, group: Sequence[int], depth: int, end: int, path: tuple[Span, ...]
    ) -> tuple[int, tuple[Span, ...]]:
        """Add the shared ids ``[depth, end)`` of a group; return the node and its end's path."""
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
        return index, path

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


_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_context: ContextVar[ForwardContext] = ContextVar("forward_context")


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """The input of a forward pass: a packed batch and its read positions.

    ``reads`` has the sample and the position in it of each read; ``read_places`` the index in the
    row. ``kv`` inserts cached keys and values and stores new ones, if there is a prefix cache.
    ``windows`` are the sliding windows that attention layers were called with.
    """

    batch: PackedBatch
    reads: Sequence[tuple[int, int]]
    read_places: Sequence[int]
    kv: BatchKV | None = None
    windows: set[int] = field(default_factory=set)
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
