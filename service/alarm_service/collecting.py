"""The garbage collector kept away from what stays for good: modules, and what they make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Have no collections while the block runs, and later ones pass over what is there by then.

    For imports: torch's and transformers' make a million objects, none of them garbage, which the
    collector would go through again and again, an eighth of the time they take.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
