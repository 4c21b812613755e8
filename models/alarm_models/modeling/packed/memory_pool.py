"""The memory pool of a prefix cache on a CPU: one mapping, whose blocks are reused.

Keys and values that stay after a pass, between tensors that do not, would leave gaps in malloc's
heap that are too small for the next pass. It would grow then, and each new page is a fault.

The pages are not huge: the first use of a huge page took longer than that of 512 small ones on a
virtual machine, and later passes took as long with either.
"""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_left
from collections import deque

import torch

from alarm_models.types import Span

__all__ = ["MemoryBlock", "MemoryPool"]

#: Blocks start at multiples of it, like those of torch's own allocator.
_ALIGNMENT = 64


class MemoryBlock:
    """A block of a pool, which returns to it with the last reference to this object.

    Tensors on its memory do not count as references.
    """

    def __init__(self, pool: MemoryPool, span: Span) -> None:
        self._pool = pool
        self._span = span

    @property
    def num_bytes(self) -> int:
        """The number of bytes, rounded up to the alignment."""
        return self._span.end - self._span.start

    def tensor(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return the start of the block as an uninitialized tensor.

        Raises `ValueError` if the block is too small.
        """
        num_bytes = shape.numel() * dtype.itemsize
        if num_bytes > self.num_bytes:
            raise ValueError(f"{num_bytes} bytes are more than the {self.num_bytes} of the block")
        of_block = self._pool.memory[self._span.start : self._span.start + num_bytes]
        return of_block.view(dtype).view(shape)

    def __del__(self) -> None:
        self._pool.returned.append(self._span)


class MemoryPool:
    """Hands out blocks of ``num_bytes`` of memory, the first that are free.

    Memory that no block has used yet takes no space. All of it is released with the pool and the
    last tensor on it. Raises `OSError` if the process may not have that much address space.
    """

    def __init__(self, num_bytes: int) -> None:
        no_reserve = getattr(mmap, "MAP_NORESERVE", 0)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
        mapping = mmap.mmap(-1, num_bytes, flags=flags)
        #: All of its bytes.
        self.memory = torch.frombuffer(mapping, dtype=torch.uint8)
        #: Spans of blocks that were deleted, in any thread and at any time.
        self.returned: deque[Span] = deque()
        self._lock = threading.Lock()
        #: Free spans, sorted, none of them adjacent.
        self._free = [Span(0, num_bytes)]

    def allocate(self, num_bytes: int) -> MemoryBlock | None:
        """Return a block, or None if no free span is long enough."""
        size = max(-(-num_bytes // _ALIGNMENT), 1) * _ALIGNMENT
        with self._lock:
            while self.returned:
                self._release(self.returned.popleft())
            for index, (start, end) in enumerate(self._free):
                if end - start >= size:
                    rest = Span(start + size, end)
                    self._free[index : index + 1] = [rest] if rest.start < end else []
                    return MemoryBlock(self, Span(start, rest.start))
        return None

    def _release(self, span: Span) -> None:
        """Add a free span and join it with its neighbors."""
        start, end = span
        index = bisect_left(self._free, span)
        stop = index
        if index and self._free[index - 1].end == start:
            index -= 1
            start = self._free[index].start
        if stop < len(self._free) and self._free[stop].start == end:
            end = self._free[stop].end
            stop += 1
        self._free[index:stop] = [Span(start, end)]
