"""A time limit for Python code that cannot be asked to stop: another's loops, in this thread."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["TimeLimitExceeded", "time_limit"]

#: How often it is looked whether a block is over its time.
_POLL_S = 0.1


class TimeLimitExceeded(TimeoutError):
    """A block ran longer than it may."""

    def __str__(self) -> str:
        """Say so: the interpreter raises the type without arguments."""
        return "it took too long"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimitExceeded` within the block, soon after so many seconds.

    It is raised between two steps of the interpreter: one call of a function in C is not
    interrupted. Blocks are not nested.
    """
    try:
        _watch.begin(seconds)
        yield
    finally:
        _watch.end()


class _Watch:
    """A daemon thread that raises in the threads whose blocks are over their time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadlines: dict[int, float] = {}
        self._is_started = False

    def begin(self, seconds: float) -> None:
        """Note that a block begins in this thread."""
        with self._changed:
            self._deadlines[threading.get_ident()] = time.monotonic() + seconds
            if not self._is_started:
                self._is_started = True
                threading.Thread(target=self._run, name="time limit", daemon=True).start()
            if len(self._deadlines) == 1:
                self._changed.notify()

    def end(self) -> None:
        """Note that this thread's block has ended: nothing is raised any more."""
        own = threading.get_ident()
        is_over = False
        while not is_over:
            # An exception raised in here is too late and must not interrupt this method.
            with suppress(TimeLimitExceeded):
                with self._changed:
                    self._deadlines.pop(own, None)
                # What was set before is raised here, where the interpreter checks for it. It is not
                # withdrawn with PyThreadState_SetAsyncExc(id, NULL): CPython 3.11 would then check
                # for an exception at every call and jump from now on, in all threads.
                for _ in range(2):
                    pass
                is_over = True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._deadlines)
                now = time.monotonic()
                for thread, deadline in self._deadlines.items():
                    if now > deadline:  # again, where a handler has swallowed it
                        _raise_in(thread, TimeLimitExceeded)
            time.sleep(_POLL_S)


def _raise_in(thread: int, error: type[Exception]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


_watch = _Watch()
