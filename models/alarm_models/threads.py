"""How torch's threads wait for their next operation, told before torch is imported."""

from __future__ import annotations

import os

__all__ = ["spin_briefly"]

# Half a millisecond where a pause takes 25 ns: longer than from one operation of a forward pass to
# the next. Chosen among 0, 2000, 5000, 20000 and 50000 by requests to `mini`, one at a time.
_NUM_SPINS = "20000"


def spin_briefly() -> None:
    """Have OpenMP's threads look for work for a moment, then sleep; the user's word wins.

    Spinning on, as they do by default, they keep the cores from tokenisers, checks and the event
    loop; sleeping at once, they wake too late for a small model's operations. Read by GNU's
    runtime, which torch's Linux wheels bring, as it loads; another sleeps at once.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", _NUM_SPINS)
