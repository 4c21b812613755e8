"""Models are constructed while none computes.

To construct a model in bfloat16, transformers makes that the default of the whole process: a
forward pass on another thread would meanwhile make its tensors in it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CONSTRUCTION", "Construction"]


class Construction:
    """Lets any number of forward passes run side by side, and a construction alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The threads that run forward passes.
        self._passes: set[int] = set()
        self._is_under_way = False

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """Run the block, a forward pass, while nothing is constructed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._passes.add(threading.get_ident())
        try:
            yield
        finally:
            self.give_up(threading.get_ident())

    def give_up(self, thread: int) -> None:
        """Wait no longer for the pass of a thread, which may never end; nobody uses its result."""
        with self._changed:
            self._passes.discard(thread)
            if self._is_under_way:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the block, a construction, while no pass runs; passes that come meanwhile wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._is_under_way = True
            self._changed.wait_for(lambda: not self._passes)
        try:
            yield
        finally:
            with self._changed:
                self._is_under_way = False
                self._changed.notify_all()


#: The process's, as its default dtype is.
CONSTRUCTION = Construction()
