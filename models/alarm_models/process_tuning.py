"""Process-wide settings made before torch is imported: malloc, OpenMP, the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = [
    "collect_frozen",
    "disable_malloc_trim",
    "gc_frozen_imports",
    "limit_openmp_spin",
    "trim_malloc",
]

# Parameters of mallopt, from glibc's <malloc.h>.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3

_MOST = 1 << 30


def disable_malloc_trim() -> bool:
    """Have glibc reuse large blocks instead of giving them back; say whether that could be set.

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


def trim_malloc() -> None:
    """Give what is free in glibc's arenas back to the system; elsewhere nothing happens.

    After `disable_malloc_trim` nothing else does. What is allocated next faults in page by page.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# Half a millisecond where a pause takes 25 ns: longer than from one operation of a forward pass to
# the next. Chosen among 0, 2000, 5000, 20000 and 50000 by requests to `mini`, one at a time.
_NUM_SPINS = "20000"


def limit_openmp_spin() -> None:
    """Have OpenMP's threads spin for a moment before they sleep, unless the user has set it.

    Spinning on, as they do by default, they keep the cores from tokenizers, checks and the event
    loop; sleeping at once, they wake too late for a small model's operations. Read by GNU's
    runtime, which torch's Linux wheels bring, as it loads; another sleeps at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", _NUM_SPINS)


@contextmanager
def gc_frozen_imports() -> Iterator[None]:
    """Disable garbage collection in the block, and freeze what exists at its end.

    For imports: torch's and transformers' make a million objects, none of them garbage, which the
    collector would go through again and again, an eighth of the time they take.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def collect_frozen() -> None:
    """Collect all garbage, of what is frozen too, and freeze what is left."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
