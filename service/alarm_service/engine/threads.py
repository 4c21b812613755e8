"""A thread pool for plain functions that must not run on the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from alarm_models.cancellation import cancellable
from alarm_service.engine.lifecycle import Lifecycle, draining_error

__all__ = ["CancellableThreadPool"]

_T = TypeVar("_T")


class CancellableThreadPool:
    """Runs plain functions in threads; one whose caller has left ends at `check_cancelled`."""

    def __init__(self, num_threads: int, name: str, life: Lifecycle) -> None:
        self._life = life
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return what the function returns; raise `Draining` once the server has stopped."""
        if self._life.is_stopped:
            raise draining_error()
        has_left = threading.Event()

        def run() -> _T:
            with cancellable(has_left.is_set):
                return call()

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        finally:
            has_left.set()

    def close(self) -> None:
        """Start nothing more; wait for nothing."""
        self._threads.shutdown(wait=False)
