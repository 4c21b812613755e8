"""Cancellation: lets a function on a worker thread end early once its caller has left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Cancelled", "cancellable", "check_cancelled"]


class Cancelled(BaseException):
    """The caller has left. No `Exception`, so that handlers that isolate samples let it through."""


_is_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("is_cancelled", default=None)


@contextmanager
def cancellable(is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Make `check_cancelled` ask ``is_cancelled``, on this thread, within the block."""
    token = _is_cancelled.set(is_cancelled)
    try:
        yield
    finally:
        _is_cancelled.reset(token)


def check_cancelled() -> None:
    """Raise `Cancelled` where this thread's work is not wanted any more.

    Loops over what callers send ask between two items, so that a caller that left frees its thread.
    """
    is_cancelled = _is_cancelled.get()
    if is_cancelled is not None and is_cancelled():
        raise Cancelled
