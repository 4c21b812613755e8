"""Middleware: request ids, access log, tracing, HEAD, trailing slashes and draining."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi.routing import APIRoute
from opentelemetry.trace import Tracer
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_models.errors import is_exception_or_panic, is_rust_panic
from alarm_service.api.auth import FREE_PATHS
from alarm_service.api.error_handlers import REQUEST_ID, REQUEST_ID_HEADER, error_response
from alarm_service.engine.lifecycle import Lifecycle, draining_error
from alarm_service.errors import (
    shortened,
)
from alarm_service.observability.metrics import Metrics
from alarm_service.observability.repeated_log import RepeatedLog
from alarm_service.observability.tracing import request_span

__all__ = [
    "AccessLogMiddleware",
    "DrainMiddleware",
    "HeadMiddleware",
    "RequestIdMiddleware",
    "TracingMiddleware",
    "TrailingSlashMiddleware",
    "route_label",
]

_log = structlog.get_logger()

_USABLE_ID = re.compile(r"[\x21-\x7e]{1,128}")


#: Request ids. Not `uuid4`, which releases the GIL to read the system's random bytes: getting it
#: back from the thread of a forward pass takes up to milliseconds. Ids are not secret.
_ids = random.Random()


class RequestIdMiddleware:
    """Gives each request an id, the client's `X-Request-Id` if usable, and returns it as header.

    Structlog's context variable `request_id` has it, for events that know no request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _USABLE_ID.fullmatch(given) else f"{_ids.getrandbits(128):032x}"
        scope[REQUEST_ID] = request_id

        async def add_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, add_header)


#: The status in logs and metrics of a request whose client disconnected (nginx's convention).
_CLIENT_CLOSED = 499


def route_label(path: str) -> str:
    """Return the label of a route's path: the path up to its first parameter.

    So `/compat/vllm/{name:path}/classify` is `/compat/vllm/{name}`: labels are few, and name no
    recipe.
    """
    before, brace, parameter = path.partition("{")
    return before + brace + parameter.partition("}")[0].partition(":")[0] + "}" * len(brace)


class AccessLogMiddleware:
    """Counts, times and logs requests by route label; a path without a route is `other`.

    A request that other middleware refused was not routed: its label is that of the first of
    ``routes`` that matches. Errors of one status share one log line per second, since clients
    without a key can cause them too.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[APIRoute]) -> None:
        self._app = app
        self._errors = RepeatedLog()
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status = _CLIENT_CLOSED

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except BaseException as error:
            if is_exception_or_panic(error):
                status = 500  # answered by an outer handler
            if is_rust_panic(error):
                raise RuntimeError(f"a library panicked: {error}") from error
            raise
        finally:
            seconds = time.monotonic() - started
            route = self._label(scope)
            self._metrics.observe_request(route, status, seconds)
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

    def _label(self, scope: Scope) -> str:
        route = scope.get("route")
        if isinstance(route, APIRoute):
            return route_label(route.path)
        path = scope["path"]
        matching = (one.path for one in self._routes if one.path_regex.match(path))
        return next(map(route_label, matching), "other")


class TrailingSlashMiddleware:
    """Serves a path with a trailing slash as the one without.

    A redirect would contain the host that the request named.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request."""
        path = scope.get("path", "")
        if scope["type"] == "http" and len(path) > 1 and path.endswith("/"):
            scope = dict(scope, path=path.rstrip("/") or "/")
        await self._app(scope, receive, send)


class HeadMiddleware:
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


class DrainMiddleware:
    """Answers 503 to every request that is still running when the drain time is over.

    The request is cancelled, whether it waits for the models, for a device or for the rest of its
    body, and its client can retry on another server. A response that was started is cut short.
    """

    def __init__(self, app: ASGIApp, life: Lifecycle) -> None:
        self._app = app
        self._life = life
        self._running: set[asyncio.Task[Any]] = set()
        life.on_end(self._cancel_running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 503."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        has_started = False

        async def note_start(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        if not self._life.is_over:
            self._running.add(task)
            try:
                await self._app(scope, receive, note_start)
                return
            except asyncio.CancelledError:
                if not self._life.is_over:
                    raise
                task.uncancel()
            finally:
                self._running.discard(task)
        if not has_started:
            await error_response(draining_error())(scope, receive, send)

    def _cancel_running(self) -> None:
        for task in self._running:
            task.cancel()


class TracingMiddleware:
    """Starts a span for each request, except health checks and metrics."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request within its span."""
        if scope["type"] != "http" or scope["path"].startswith(FREE_PATHS):
            await self._app(scope, receive, send)
            return
        name = shortened(f"{scope['method']} {scope['path']}")
        with request_span(self._tracer, name, Headers(scope=scope)) as span:

            async def note_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", str(message["status"]))
                await send(message)

            await self._app(scope, receive, note_status)
