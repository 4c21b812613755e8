"""How torch's threads wait for their next operation, told before torch is imported."""

from __future__ import annotations

import os

__all__ = ["spin_briefly"]

# Some 50 microseconds: longer than from one operation of a forward pass to the next.
_NUM_SPINS = "20000"


def spin_briefly() -> None:
    """Have OpenMP's threads look for work for some microseconds, then sleep; the user's word wins.

    Spinning on, as they do by default, they keep the cores from tokenisers, checks and the event
    loop; sleeping at once, they wake too late for a small model's operations. Read by GNU's
    runtime, which torch's Linux wheels bring, as it loads; another sleeps at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", _NUM_SPINS)
