"""The prefix cache: keys and values (KV cache) of earlier batches, so that prefill skips them.

- Store: `CachedBatch`, a packed batch that ran, with the keys and values of each layer.
- Lookup: `PrefixCache.lookup`, the longest cached prefix of a sample, found by bisection.
- Insertion: `BatchKV`, which adds cached keys and values to those of a running batch.
- Memory: on a CPU a `MemoryPool` of the cache's size, elsewhere that of the batch's own tensors.
- Eviction: `PrefixCache.insert`, oldest batch first (FIFO), by bytes and by number of batches.
- Policy: `PrefixCaches`, which samples may use which cache.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.packed.memory_pool import MemoryBlock, MemoryPool
from alarm_models.modeling.packed.positions import Lengths
from alarm_models.types import Span

__all__ = [
    "MIN_SHARED_PREFIX",
    "BatchKV",
    "CacheHit",
    "CachedBatch",
    "Ids",
    "PrefixCache",
    "PrefixCaches",
    "common_prefix_length",
    "spans_within",
]

#: A shared prefix shorter than this does not justify a separate node.
MIN_SHARED_PREFIX = 16

#: Maximum number of cached batches, however small: most prompts recur soon or never.
_MAX_BATCHES = 64

#: Token ids, or token ids with their types.
Ids = tuple[int, ...] | tuple[tuple[int, int], ...]


def common_prefix_length(first: Ids, second: Ids, known: int) -> int:
    """Count the ids of the prefix that two samples share, at least the first ``known``."""
    low, high = known, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def spans_within(pieces: Sequence[Span], tokens: Span) -> list[Span]:
    """Map a span of a sample's tokens to the stored spans that the sample consists of."""
    spans: list[Span] = []
    passed = 0
    for start, end in pieces:
        first, last = max(tokens.start - passed, 0), min(tokens.end - passed, end - start)
        if first < last:
            spans.append(Span(start + first, start + last))
        passed += end - start
    return spans


@dataclass(frozen=True, slots=True, eq=False)
class CachedBatch:
    """A packed batch that ran: its samples, and each layer's keys and values.

    ``key_spans`` has for each sample the spans of its keys, in order; ``layers`` has for
    each layer keys and values, ``[1, heads, keys, dim]`` each; ``owners`` the owner of each sample,
    or is empty if there are none. ``blocks`` of a memory pool, if any, hold the tensors.
    """

    samples: Sequence[Ids]
    key_spans: Sequence[Sequence[Span]]
    layers: Mapping[int, tuple[torch.Tensor, torch.Tensor]]
    owners: Sequence[str] = ()
    blocks: Sequence[MemoryBlock] = ()

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the blocks, or of the storages, that the batch keeps alive."""
        if self.blocks:
            return sum(block.num_bytes for block in self.blocks)
        tensors = (tensor for pair in self.layers.values() for tensor in pair)
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@dataclass(frozen=True, slots=True, eq=False)
class CacheHit:
    """Tokens of a sample that are cached, as spans of the keys of a cached batch."""

    batch: CachedBatch
    spans: tuple[Span, ...]

    def __len__(self) -> int:
        """Count the tokens."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, slots=True, eq=False)
class BatchKV:
    """The keys and values of a running batch by layer, with cached ones inserted.

    ``hits`` has the keys of the batch that are cached, in order. ``layers`` fills layer by layer.
    ``allocate`` returns a block of the cache's memory, if there is one, for a number of bytes and
    the number of such blocks that the batch needs: two for each of ``num_layers``.
    """

    hits: Sequence[tuple[Span, CacheHit]]
    allocate: Callable[[int, int], MemoryBlock | None] = lambda *_: None
    num_layers: int = 1
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    blocks: list[MemoryBlock] = field(default_factory=list)

    def update(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's keys and values, ``[1, heads, tokens, dim]``, and add the cached ones.

        Returns ``[1, heads, keys, dim]`` each.
        """
        key, value = self._stored(key, layer, 0), self._stored(value, layer, 1)
        self.layers[layer] = (key, value)
        return key, value

    def _stored(self, states: torch.Tensor, layer: int, kind: int) -> torch.Tensor:
        """Merge the row's keys (kind 0) or values (1) with the cached ones, in the cache's memory.

        Without a block, they are stored where they are.
        """
        _, num_heads, num_tokens, dim = states.shape
        num_keys = num_tokens + sum(len(hit) for _, hit in self.hits)
        shape = torch.Size([1, num_heads, num_keys, dim])
        block = self.allocate(shape.numel() * states.itemsize, 2 * self.num_layers)
        if block is None:
            return self._splice(states, layer, kind) if self.hits else states
        self.blocks.append(block)
        return self._splice(states, layer, kind, out=block.tensor(shape, states.dtype))

    def _splice(
        self, states: torch.Tensor, layer: int, kind: int, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Concatenate the row's keys or values and the cached ones, in order."""
        parts: list[torch.Tensor] = []
        num_placed = num_cached = 0
        for (start, end), hit in self.hits:
            before, num_placed = num_placed, start - num_cached
            cached = hit.batch.layers[layer][kind]
            parts.append(states[:, :, before:num_placed])
            parts += (cached[:, :, slice(*span)] for span in hit.spans)
            num_cached += end - start
        return torch.cat([*parts, states[:, :, num_placed:]], 2, out=out)


class _Entry(NamedTuple):
    """A sample of a cached batch, by its owner and its ids."""

    owner: str
    ids: Ids
    batch: CachedBatch
    sample: int


class PrefixCache:
    """A FIFO cache of batches, bounded by bytes and by number of batches.

    With ``pooled``, it has a memory pool of ``max_bytes``, and only batches that fit are cached.
    """

    def __init__(self, max_bytes: int, *, pooled: bool = False) -> None:
        self._max_bytes = max_bytes
        self._pool: MemoryPool | None = None
        if pooled:
            with suppress(OSError):  # batches then stay in the memory of their passes
                self._pool = MemoryPool(max_bytes)
        #: A pass that took too long is given up and goes on in its thread.
        self._lock = threading.Lock()
        self._is_closed = False
        self._batches: deque[CachedBatch] = deque()
        #: Sorted by owner and ids, so the longest common prefix is with one of the two neighbors.
        self._entries: list[_Entry] = []
        self.num_bytes = 0

    def allocate(self, num_bytes: int, num_blocks: int) -> MemoryBlock | None:
        """Return a block for a running batch, for which the oldest batches are evicted.

        None without a pool, if the pool cannot hold ``num_blocks`` of them, and if what is left is
        used by running batches.
        """
        with self._lock:
            if self._pool is None or num_bytes * num_blocks > self._max_bytes:
                return None
            while (block := self._pool.allocate(num_bytes)) is None and self._batches:
                self._evict_oldest()
            return block

    def lookup(self, ids: Ids, depth: int, owner: str = "") -> CacheHit | None:
        """Return the longest cached prefix of an owner's ids, from ``depth`` on.

        None if it has fewer than `MIN_SHARED_PREFIX` tokens.
        """
        index = bisect_left(self._entries, (owner, ids), key=_key)
        neighbors = self._entries[max(index - 1, 0) : index + 1]
        end, best = max(
            (
                (common_prefix_length(entry.ids, ids, 0), entry)
                for entry in neighbors
                if entry.owner == owner
            ),
            key=lambda match: match[0],
            default=(0, None),
        )
        if best is None or end < depth + MIN_SHARED_PREFIX:
            return None
        key_spans = best.batch.key_spans[best.sample]
        return CacheHit(best.batch, tuple(spans_within(key_spans, Span(depth, end))))

    def insert(self, batch: CachedBatch) -> None:
        """Insert a batch and evict the oldest ones beyond the limits."""
        with self._lock:
            is_outside = self._pool is not None and len(batch.blocks) < 2 * len(batch.layers)
            if self._is_closed or is_outside or batch.num_bytes > self._max_bytes:
                return
            self._batches.append(batch)
            self.num_bytes += batch.num_bytes
            for sample, ids in enumerate(batch.samples):
                if len(ids) >= MIN_SHARED_PREFIX:
                    owner = batch.owners[sample] if batch.owners else ""
                    insort(self._entries, _Entry(owner, ids, batch, sample), key=_key)
            while self.num_bytes > self._max_bytes or len(self._batches) > _MAX_BATCHES:
                self._evict_oldest()

    def close(self) -> None:
        """Evict everything, and cache nothing from now on.

        The memory of the pool is released with the last batch that uses it.
        """
        with self._lock:
            self._is_closed = True
            self._pool = None
            self._batches.clear()
            self._entries.clear()
            self.num_bytes = 0

    def _evict_oldest(self) -> None:
        oldest = self._batches.popleft()
        self.num_bytes -= oldest.num_bytes
        self._entries = [entry for entry in self._entries if entry.batch is not oldest]


def _key(entry: _Entry) -> tuple[str, Ids]:
    return entry.owner, entry.ids


class PrefixCaches:
    """A model's prefix caches, one per length class, with equal shares of ``max_bytes``.

    With 0 bytes caching is disabled; ``pooled`` as in `PrefixCache`. Sequences of different classes
    have different rotary positions (see `Lengths`), so their keys differ. Where every length has
    separate frequencies, nothing is cached.
    """

    def __init__(self, max_bytes: int, lengths: Lengths, *, pooled: bool = False) -> None:
        self._lengths = lengths
        self._pooled = pooled
        self._max_bytes = max_bytes // max(lengths.num_classes, 1)
        self._caches = self._new()

    def __bool__(self) -> bool:
        """Whether caching is enabled."""
        return bool(self._caches)

    def select(self, batch: Sequence[ModelInput]) -> PrefixCache | None:
        """Return the cache of sequences of one length class; None if they are not cached.

        Sequences with token types are not cached.
        """
        if any(one.token_type_ids for one in batch):
            return None
        return self._caches.get(self._lengths.of(batch[0].num_tokens))

    def clear(self) -> None:
        """Evict everything; a batch that is still running is not inserted into the new caches."""
        for cache in self._caches.values():
            cache.close()
        self._caches = self._new()

    def _new(self) -> dict[int, PrefixCache]:
        num = self._lengths.num_classes if self._max_bytes else 0
        return {number: PrefixCache(self._max_bytes, pooled=self._pooled) for number in range(num)}
