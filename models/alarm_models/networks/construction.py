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
        self._num_passes = 0
        self._is_under_way = False

    @contextmanager
    def kept_out(self) -> Iterator[None]:
        """Run the block, a forward pass, while nothing is constructed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._num_passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_passes -= 1
                if self._is_under_way:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Run the block, a construction, while no pass runs; passes that come meanwhile wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_under_way)
            self._is_under_way = True
            self._changed.wait_for(lambda: not self._num_passes)
        try:
            yield
        finally:
            with self._changed:
                self._is_under_way = False
                self._changed.notify_all()


#: The process's, as its default dtype is.
CONSTRUCTION = Construction()
