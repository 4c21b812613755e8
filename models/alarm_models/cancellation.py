"""Cancellation: of functions on worker threads, and of the siblings of a task that failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Cancelled", "cancellable", "check_cancelled", "gather_or_cancel"]


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


async def gather_or_cancel(*awaitables: Awaitable[Any]) -> list[Any]:
    """Return all results; if one raises, cancel the others and wait for them before it is raised.

    `asyncio.gather` would let them run on, such as requests to a judge that nobody reads.
    """
    tasks = [asyncio.ensure_future(one) for one in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
