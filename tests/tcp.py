"""Serves an app on a real socket, from a separate thread and event loop."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

PATIENCE_S = 60


@contextmanager
def over_tcp(
    app: ASGIApp, lifespan: Literal["on", "off"] = "on", port: int = 0, **options: Any
) -> Iterator[int]:
    """Serve an app on a port, by default a free one; yield it. ``off`` disables the lifespan.

    ``options`` are uvicorn's.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan=lifespan, log_config=None, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
