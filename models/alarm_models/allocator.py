"""The C allocator, told to keep the memory that a forward pass frees."""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed_memory"]

# Parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

_MOST = 1 << 30


def keep_freed_memory() -> bool:
    """Have glibc reuse large blocks instead of giving them back; say whether it could be told.

    By default each large tensor is mapped afresh and its pages fault in one by one, which can cost
    a forward pass on a CPU more than its arithmetic beside the matrix products. Affects the whole
    process, whose threads keep arenas of their own: checkers that allocate much would wait for each
    other in one. Elsewhere than on glibc nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, _MOST))
    return all(bool(mallopt(name, value)) for name, value in wanted)
