"""`alarm serve`: the process around the application, from its socket to its exit code."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import structlog
import uvicorn
from alarm_models.recipe import Recipe

from alarm_service.app import create_app
from alarm_service.engine import Engine
from alarm_service.logs import set_up_logs
from alarm_service.settings import Settings
from alarm_service.sockets import url_of

__all__ = ["serve"]

_log = structlog.get_logger()


class _DrainingServer(uvicorn.Server):
    """Lets running requests finish after the first signal, and takes no new ones."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        _log.info("draining", signal=signal.Signals(sig).name)
        self._engine.drain()
        super().handle_exit(sig, frame)


def serve(recipes: Sequence[Recipe], settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal; return the exit code: 0 after draining, 1 where loading failed."""
    set_up_logs(settings.log_level)
    stop = _Stop()
    app = create_app(recipes, settings, on_failure=stop)
    engine: Engine = app.state.engine
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=settings.drain_s
    )
    server = stop.server = _DrainingServer(config, engine)
    # uvicorn raises its signal again once it has stopped: by then there is nothing left to do.
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    _log.info(
        "listening",
        url=url_of(listener),
        recipes=[recipe.name for recipe in recipes],
        device=str(engine.device),
    )
    server.run(sockets=[listener])
    if engine.failure is not None:
        sys.stderr.write(f"alarm: {engine.failure}\n")
        return 1
    return 0


class _Stop:
    """Stops the server that is put in; loading may fail before there is one."""

    server: uvicorn.Server | None = None

    def __call__(self) -> None:
        if self.server is not None:
            self.server.should_exit = True
