"""What happens to every request before a route sees it: a log line, a span, a plain path."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_service.faults import shortened
from alarm_service.telemetry.metrics import Metrics
from alarm_service.telemetry.repeated import RepeatedLog
from alarm_service.telemetry.tracing import Traces
from alarm_service.web.authorizing import FREE_PATHS
from alarm_service.web.request_ids import REQUEST_ID

__all__ = ["AccessLog", "HeadAsGet", "PlainPath", "Traced"]

_log = structlog.get_logger()

#: The status in logs and metrics of a request whose caller hung up (nginx's convention).
_HUNG_UP = 499


class AccessLog:
    """Counts, times and logs each request by its label; paths that have none share `other`.

    Errors of one status share a line a second: whoever has no key can cause them without end.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, label: Callable[[str], str | None]) -> None:
        self._app = app
        self._errors = RepeatedLog()
        self._metrics = metrics
        self._label = label

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = _HUNG_UP

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except Exception:
            status = 500  # answered further out
            raise
        finally:
            seconds = time.monotonic() - started
            route = self._label(scope["path"]) or "other"
            self._metrics.answered(route, status, seconds)
            level = "debug" if route.startswith(("/health", "/metrics")) else "info"
            write = getattr(_log, level)
            fields = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "request_id": scope.get(REQUEST_ID),
            }
            if status < 400:
                write("request", **fields, seconds=seconds)
            else:
                self._errors.write((level, status), write, "request", **fields, seconds=seconds)


class PlainPath:
    """Takes a path with a slash at its end for the one without.

    A redirect would name whatever host the request named.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and len(path) > 1 and path.endswith("/"):
            scope = dict(scope, path=path.rstrip("/") or "/")
        await self._app(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = dict(message, body=b"")
            await send(message)

        await self._app(dict(scope, method="GET"), receive, without_body)


class Traced:
    """Spans each request that a trace may be about; those of watchers are none."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request within its span."""
        if scope["type"] != "http" or scope["path"].startswith(FREE_PATHS):
            await self._app(scope, receive, send)
            return
        name = shortened(f"{scope['method']} {scope['path']}")
        with self._traces.request(name, Headers(scope=scope)) as attributes:

            async def note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    attributes["http.response.status_code"] = message["status"]
                await send(message)

            await self._app(scope, receive, note_status)
