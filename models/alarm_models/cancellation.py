"""Cancellation: lets a function on a worker thread stop once its caller has disconnected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Cancelled", "cancellable", "check_cancelled"]


class Cancelled(BaseException):
    """The caller has disconnected. Not an `Exception`: per-sample handlers must not catch it."""


_is_cancelled: ContextVar[Callable[[], bool] | None] = ContextVar("is_cancelled", default=None)


@contextmanager
def cancellable(is_cancelled: Callable[[], bool]) -> Iterator[None]:
    """Make `check_cancelled` call ``is_cancelled`` on this thread within the block."""
    token = _is_cancelled.set(is_cancelled)
    try:
        yield
    finally:
        _is_cancelled.reset(token)


def check_cancelled() -> None:
    """Raise `Cancelled` if this thread's work is no longer needed.

    Loops over a caller's items call it between items, so that a disconnected caller's thread is
    freed.
    """
    is_cancelled = _is_cancelled.get()
    if is_cancelled is not None and is_cancelled():
        raise Cancelled
