"""One scoring call for several rewards of one batch, whichever thread or task asks first."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Generic, TypeVar

T = TypeVar("T")

# Calls that some reward may still ask for. More are in flight only where batches are scored side
# by side, and what is forgotten is scored again.
_NUM_KEPT = 16

# The rewards of one batch are asked for one after the other; who asks later has another batch.
_SECONDS_KEPT = 600.0

_serials = itertools.count()


class Asker:
    """One that asks for each batch once, such as one of several reward functions."""

    __slots__ = ("serial",)

    def __init__(self) -> None:
        self.serial = next(_serials)

    def __reduce__(self) -> tuple[type[Asker], tuple[()]]:
        return Asker, ()  # in another process it is another one


class _Call(Generic[T]):
    def __init__(self, now: float) -> None:
        self.started = now
        self.serial = next(_serials)
        self.result: Future[T] = Future()
        self.askers: set[int] = set()


class SharedCalls(Generic[T]):
    """Results by key, each given to an asker once.

    Who asks again has a new batch that happens to be the same, and it is scored anew; so it is for
    an asker that was made after the call, or asks ten minutes after it began. A failed call fails
    all that share it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._calls: OrderedDict[object, _Call[T]] = OrderedDict()

    def __reduce__(self) -> tuple[type[SharedCalls[T]], tuple[()]]:
        return type(self), ()  # another process has no call in flight

    def result(self, asker: Asker, key: object, make: Callable[[], T]) -> T:
        """The result of `make`, made here or by another thread for the same key."""
        while True:
            call, is_mine = self._join(asker, ("blocking", key))
            if is_mine:
                break
            with suppress(CancelledError):
                return call.result.result()
        try:
            made = make()
        except BaseException as error:
            self._fail(("blocking", key), call, error)
            raise
        call.result.set_result(made)
        return made

    async def aresult(self, asker: Asker, key: object, make: Callable[[], Awaitable[T]]) -> T:
        """As `result`, awaited.

        Blocking callers do not join: one of them could wait on the loop that is to run the call.
        """
        while True:
            call, is_mine = self._join(asker, ("awaited", key))
            if is_mine:
                break
            result = await _outcome(call.result)
            if result is not None:
                return result.result()
        try:
            made = await make()
        except BaseException as error:
            self._fail(("awaited", key), call, error)
            raise
        call.result.set_result(made)
        return made

    def _join(self, asker: Asker, key: object) -> tuple[_Call[T], bool]:
        with self._lock:
            call, now = self._calls.get(key), self._now()
            if call is None or not _may_join(asker, call, now):
                call = self._calls[key] = _Call(now)
                self._calls.move_to_end(key)
                while len(self._calls) > _NUM_KEPT:
                    self._calls.popitem(last=False)
            is_mine = not call.askers
            call.askers.add(asker.serial)
            return call, is_mine

    def _fail(self, key: object, call: _Call[T], error: BaseException) -> None:
        if isinstance(error, Exception):
            call.result.set_exception(error)
            return
        # Cancelled or interrupted: that is no answer, so that whoever waits asks itself.
        with self._lock:
            if self._calls.get(key) is call:
                del self._calls[key]
        call.result.cancel()


def _may_join(asker: Asker, call: _Call[T], now: float) -> bool:
    is_late = call.result.done() and now - call.started > _SECONDS_KEPT
    return not is_late and asker.serial < call.serial and asker.serial not in call.askers


async def _outcome(result: Future[T]) -> Future[T] | None:
    """The finished future, or None where the one who asked was cancelled."""
    waiting = asyncio.wrap_future(result)
    await asyncio.wait([waiting])
    if result.cancelled():
        return None
    waiting.exception()  # seen; it is raised from `result`
    return result
