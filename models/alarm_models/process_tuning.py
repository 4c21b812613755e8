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
    """Make glibc reuse large blocks instead of returning them; say whether it could be set.

    By default each large tensor is mapped anew and its pages fault in one by one, which can cost a
    forward pass on a CPU more than all its arithmetic other than the matrix products. Affects the
    whole process. Threads keep their own arenas, because checks that allocate much would contend
    for a single one. Without glibc, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, _MOST))
    return all(bool(mallopt(name, value)) for name, value in wanted)


def trim_malloc() -> None:
    """Give free memory in glibc's arenas back to the system; elsewhere nothing happens.

    After `disable_malloc_trim` nothing else does. What is allocated next faults in page by page.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


# Half a millisecond if a pause takes 25 ns: longer than the time between two operations of a
# forward pass. Chosen among 0, 2000, 5000, 20000 and 50000 by timing single requests to `mini`.
_NUM_SPINS = "20000"


def limit_openmp_spin() -> None:
    """Let OpenMP's threads spin briefly before they sleep, unless the user has set the policy.

    By default they spin on and keep tokenizers, checks and the event loop from the cores. If they
    slept at once, they would wake too late for a small model's operations. GNU's runtime, which
    torch's Linux wheels contain, reads the setting when it is loaded; other runtimes sleep at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", _NUM_SPINS)


@contextmanager
def gc_frozen_imports() -> Iterator[None]:
    """Disable garbage collection in the block, and freeze what exists at its end.

    Used for imports: those of torch and transformers create a million objects, none of them
    garbage. The collector would scan them again and again, which takes an eighth of the import
    time.
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
