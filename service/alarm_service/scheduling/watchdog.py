"""A watch over blocks of code that may never end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Watchdog"]


class Watchdog:
    """Calls ``on_late``, once and from a thread of its own, when a block takes too long.

    One block runs at a time. The thread sleeps until the block that it saw would be late, or until
    the next one begins: it wakes about once in ``timeout_s``, however many blocks come and go.
    """

    def __init__(self, timeout_s: float, on_late: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_late = on_late
        self._begun: float | None = None
        self._is_idle = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def close(self) -> None:
        """Let the thread end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Be late unless the block ends in time."""
        self._begun = time.monotonic()
        # The thread says that it is idle before it looks whether a block has begun: so one of the
        # two sees the other.
        if self._is_idle:
            with self._changed:
                self._changed.notify()
        try:
            yield
        finally:
            self._begun = None

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                begun = self._begun
                if begun is None:
                    self._is_idle = True
                    self._changed.wait_for(lambda: self._is_closed or self._begun is not None)
                    self._is_idle = False
                    continue
                left_s = begun + self._timeout_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            else:
                return
        self._on_late()
