"""Single flight: one scoring call for several reward functions of one batch."""

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

# Calls whose result another reward function may still request. More are in flight only if batches
# are scored concurrently; an evicted call is repeated.
_NUM_KEPT = 16

# The reward functions of one batch run one after another; a later call has a new batch.
_SECONDS_KEPT = 600.0

_serials = itertools.count()


class Consumer:
    """One reward function, which requests the rewards of each batch once."""

    __slots__ = ("serial",)

    def __init__(self) -> None:
        self.serial = next(_serials)

    def __reduce__(self) -> tuple[type[Consumer], tuple[()]]:
        return Consumer, ()  # each process has its own


class _Call(Generic[T]):
    def __init__(self, now: float) -> None:
        self.started = now
        self.serial = next(_serials)
        self.result: Future[T] = Future()
        self.consumers: set[int] = set()


class SharedCalls(Generic[T]):
    """Results by key, each given to a consumer once.

    A second request by the same consumer means a new, equal batch, which is scored again. So does a
    request by a consumer that was created after the call, or ten minutes after its start. A failed
    call fails for every consumer that shares it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._calls: OrderedDict[object, _Call[T]] = OrderedDict()

    def __reduce__(self) -> tuple[type[SharedCalls[T]], tuple[()]]:
        return type(self), ()  # another process has no call in flight

    def result(self, consumer: Consumer, key: object, compute: Callable[[], T]) -> T:
        """The result of `compute`, called here or by another thread for the same key."""
        while True:
            call, is_mine = self._join(consumer, ("blocking", key))
            if is_mine:
                break
            with suppress(CancelledError):
                return call.result.result()
        try:
            computed = compute()
        except BaseException as error:
            self._fail(("blocking", key), call, error)
            raise
        call.result.set_result(computed)
        return computed

    async def aresult(
        self, consumer: Consumer, key: object, compute: Callable[[], Awaitable[T]]
    ) -> T:
        """As `result`, awaited.

        Blocking callers do not share these calls, as they could block the loop that runs them.
        """
        while True:
            call, is_mine = self._join(consumer, ("awaited", key))
            if is_mine:
                break
            result = await _outcome(call.result)
            if result is not None:
                return result.result()
        try:
            computed = await compute()
        except BaseException as error:
            self._fail(("awaited", key), call, error)
            raise
        call.result.set_result(computed)
        return computed

    def _join(self, consumer: Consumer, key: object) -> tuple[_Call[T], bool]:
        with self._lock:
            call, now = self._calls.get(key), self._now()
            if call is None or not _may_join(consumer, call, now):
                call = self._calls[key] = _Call(now)
                self._calls.move_to_end(key)
                while len(self._calls) > _NUM_KEPT:
                    self._calls.popitem(last=False)
            is_mine = not call.consumers
            call.consumers.add(consumer.serial)
            return call, is_mine

    def _fail(self, key: object, call: _Call[T], error: BaseException) -> None:
        if isinstance(error, Exception):
            call.result.set_exception(error)
            return
        # Cancelled or interrupted: there is no result, so a waiting consumer makes the call itself.
        with self._lock:
            if self._calls.get(key) is call:
                del self._calls[key]
        call.result.cancel()


def _may_join(consumer: Consumer, call: _Call[T], now: float) -> bool:
    is_late = call.result.done() and now - call.started > _SECONDS_KEPT
    return not is_late and consumer.serial < call.serial and consumer.serial not in call.consumers


async def _outcome(result: Future[T]) -> Future[T] | None:
    """The finished future, or None if the consumer that made the call was cancelled."""
    waiting = asyncio.wrap_future(result)
    await asyncio.wait([waiting])
    if result.cancelled():
        return None
    waiting.exception()  # mark as retrieved; it is raised from `result`
    return result
