"""The server process of `alarm serve`: signals, sockets, draining, exit code."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import structlog
import uvicorn

from alarm_models.process_tuning import disable_malloc_trim
from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.api.http_protocol import HeaderLimits, bounded_protocol
from alarm_service.engine.devices import ModelLoader
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.recipe_manager import RecipeManager, RecipeSources
from alarm_service.errors import ServiceError
from alarm_service.observability.descriptors import Descriptors
from alarm_service.observability.logging import capture_uncaught, log_stream, set_up_logs
from alarm_service.observability.repeated_log import RepeatedLog
from alarm_service.preflight import url_of
from alarm_service.settings import Settings

__all__ = ["serve"]

_log = structlog.get_logger()

#: Longer than clients keep idle connections, so that none is closed while it is reused.
_KEEP_ALIVE_S = 75

#: Seconds for sending the last responses after the drain.
_LAST_RESPONSES_S = 2

#: uvicorn's.
_TICKS_PER_SECOND = 10

#: Threads in native code of libraries, which the process does not wait for at exit.
_WORKING_THREADS = ("load", "device", "tokenize", "parse", "check")


class _DrainingServer(uvicorn.Server):
    """Drains after the first signal: running requests finish, new ones are refused."""

    def __init__(
        self, config: uvicorn.Config, engine: RewardEngine, manager: RecipeManager, drain_s: float
    ) -> None:
        super().__init__(config)
        self._descriptors = Descriptors()
        self._drain_s = drain_s
        self._engine = engine
        self._manager = manager
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and reload on SIGHUP, on the event loop rather than in the signal handler."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._begin_reload)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Check about once a second whether files can still be opened."""
        if counter % _TICKS_PER_SECOND == 0:
            self._descriptors.check()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain; not in the signal handler, which may interrupt code that holds the log's lock.

        Requests that still run after the drain time get 503, and a moment to receive it.
        """
        _log.info("draining")
        self._engine.life.drain()
        ending = asyncio.get_running_loop().call_later(self._drain_s, self._end)
        await super().shutdown(sockets)
        ending.cancel()

    def _end(self) -> None:
        if self.server_state.tasks:
            num = len(self.server_state.tasks)
            _log.warning("drain timeout", seconds=self._drain_s, unfinished=num)
        self._engine.life.end()

    def _begin_reload(self) -> None:
        task = asyncio.create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        with suppress(ServiceError):  # which is logged
            await self._manager.reload()


def serve(
    recipes: Sequence[Recipe],
    settings: Settings,
    listener: socket.socket,
    load: ModelLoader | None = None,
) -> int:
    """Serve until a signal; return the exit code: 0 after draining, 1 if loading failed.

    ``load`` replaces loading into this process, such as by Ray.
    """
    set_up_logs(settings.log_level, log_stream(sys.stderr.fileno()))
    capture_uncaught()
    disable_malloc_trim()
    stop = _Stop()
    names = [recipe.name for recipe in recipes]
    known = dict(zip(names, settings.recipe, strict=True))
    sources = RecipeSources(known, settings.set, settings.recipe_dir)
    app = create_app(recipes, settings, load=load, sources=sources, on_failure=stop)
    engine: RewardEngine = app.state.engine
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=bounded_protocol(_header_limits(settings, engine)),
        ws="none",
        timeout_graceful_shutdown=settings.drain_s + _LAST_RESPONSES_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    server = stop.server = _DrainingServer(
        config, engine, app.state.recipe_manager, settings.drain_s
    )
    # Until uvicorn installs its handlers; it re-raises signals once it has stopped.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, stop)
    _log.info(
        "listening",
        url=url_of(listener, is_tls=config.is_ssl),
        recipes=names,
        devices=[str(device) for device in engine.device_pool.devices],
    )
    server.run(sockets=[listener])
    code = 0
    if engine.life.failure is not None:
        log_stream(sys.stderr.fileno()).write(f"alarm: {engine.life.failure}\n")
        code = 1
    if _is_in_native_code():
        # Python would finalize while such a thread is in torch's code, which may abort, or would
        # wait for a tokenization whose result is not needed any more.
        atexit._run_exitfuncs()
        os._exit(code)
    return code


def _is_in_native_code() -> bool:
    return any(thread.name.startswith(_WORKING_THREADS) for thread in threading.enumerate())


def _header_limits(settings: Settings, engine: RewardEngine) -> HeaderLimits:
    refusals = RepeatedLog()

    def refused(error: ServiceError) -> None:
        engine.metrics.observe_request("other", error.status, 0.0)
        refusals.write(
            error.code, _log.info, "request refused", status=error.status, error=error.message
        )

    return HeaderLimits(
        max_bytes=settings.max_header_bytes,
        max_headers=settings.max_headers,
        timeout_s=settings.header_timeout_s,
        unread_timeout_s=settings.body_timeout_s,
        refused=refused,
    )


class _Stop:
    """Stops the server as soon as it is set, since loading may fail before that."""

    server: uvicorn.Server | None = None

    def __call__(self, *_: object) -> None:
        if self.server is not None:
            self.server.should_exit = True
