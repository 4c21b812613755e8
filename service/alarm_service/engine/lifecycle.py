"""Lifecycle: loading, ready, sleeping, draining or broken, and waiting for it to be ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from enum import StrEnum

from alarm_service.errors import Broken, Draining, Sleeping

__all__ = ["Lifecycle", "LifecycleState", "draining_error"]


class LifecycleState(StrEnum):
    """The states of a server; any of them may be followed by `BROKEN`."""

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    BROKEN = "broken"


class Lifecycle:
    """The server's state: loading, ready, sleeping, draining or broken.

    ``failure`` is the reason why the models could not be loaded, ``device_error`` why the device is
    lost; ``degraded`` has the reasons why devices are slow or missing, by cause. Any thread may set
    the latter two; everything else is used by the event loop only.
    """

    def __init__(self, models: Collection[str]) -> None:
        self.failure: Exception | None = None
        self.device_error: Broken | None = None
        self.degraded: dict[object, str] = {}
        self.is_sleeping = False
        self.is_draining = False
        self.is_stopped = False
        self.is_over = False
        self._at_drain: list[Callable[[], object]] = []
        self._at_end: list[Callable[[], object]] = []
        self._models = models
        self._awaited: str | None = None
        self._is_loaded = False
        #: Set once the models are loaded, failed to load, or are no longer awaited.
        self._settled = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def state(self) -> LifecycleState:
        """The current state."""
        if self.failure is not None or self.device_error is not None:
            return LifecycleState.BROKEN
        if self.is_draining:
            return LifecycleState.DRAINING
        if self.is_sleeping:
            return LifecycleState.SLEEPING
        return LifecycleState.READY if self._is_loaded else LifecycleState.LOADING

    @property
    def reason(self) -> str:
        """The reason for the current state, as a sentence."""
        match self.state:
            case LifecycleState.BROKEN:
                return f"broken: {self.failure or self.device_error}"
            case LifecycleState.LOADING:
                awaited = f"; {self._awaited}; trying again" if self._awaited else ""
                return f"loading {', '.join(self._models)}{awaited}"
            case LifecycleState.READY if self.degraded:
                reasons = dict.fromkeys(list(self.degraded.values()))
                return f"ready; degraded: {'; '.join(reasons)}"
            case LifecycleState.SLEEPING:
                return "sleeping: the models are not loaded; POST /admin/wake loads them again"
            case state:
                return state.value

    async def until_ready(self) -> None:
        """Wait until the models are loaded; raise `Broken`, `Draining` or `Sleeping` if not."""
        await self.until_loaded()
        self.require_awake()

    async def until_loaded(self) -> None:
        """Wait until the first models were loaded; raise `Broken` or `Draining` if they are not."""
        await self._settled.wait()
        if self.state is LifecycleState.BROKEN:
            raise Broken(self.reason, retry_after_s=5)
        if not self._is_loaded:
            raise draining_error()

    def require_awake(self) -> None:
        """Raise `Sleeping` if the models were released."""
        if self.is_sleeping:
            raise Sleeping(self.reason, retry_after_s=5)

    async def until_draining(self) -> None:
        """Wait until the server drains."""
        await self._drained.wait()

    def set_waiting_on(self, awaited: str | None) -> None:
        """Set the reason why loading is blocked; None once it is not."""
        self._awaited = awaited

    def set_ready(self) -> None:
        """Mark the server as ready: every model has run."""
        self._is_loaded = True
        self._settled.set()

    def set_failed(self, failure: Exception) -> None:
        """Mark the models as failed to load."""
        self.failure = failure
        self._settled.set()

    def drain(self) -> None:
        """Refuse new requests; running ones continue, except those waiting for the models."""
        self.is_draining = True
        self._settled.set()
        self._drained.set()
        for call in self._at_drain:
            call()

    def on_drain(self, call: Callable[[], object]) -> None:
        """Register a callback for the start of the drain; it may be called again at its end."""
        self._at_drain.append(call)

    def on_end(self, call: Callable[[], object]) -> None:
        """Register a callback for the end of the drain time."""
        self._at_end.append(call)

    def end(self) -> None:
        """End the drain: requests that are still running are cancelled."""
        self.drain()
        self.is_over = True
        for call in self._at_end:
            call()

    def stop(self) -> None:
        """Stop: nothing new is started, not in threads either."""
        self.drain()
        self.is_stopped = True


def draining_error() -> Draining:
    """Return the error of requests that arrive while the server drains."""
    return Draining("the server is stopping; retry on another server", retry_after_s=5)
