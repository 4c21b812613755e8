"""Middleware: access log, tracing spans, body limits, digests, HEAD."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_service.api.auth import BODY_BYTES, FREE_PATHS
from alarm_service.api.error_handlers import error_response
from alarm_service.api.request_ids import REQUEST_ID
from alarm_service.errors import (
    BodyTimeout,
    CorruptedBody,
    Overloaded,
    ServiceError,
    TooLarge,
    shortened,
)
from alarm_service.observability.metrics import Metrics
from alarm_service.observability.repeated_log import RepeatedLog
from alarm_service.observability.tracing import Traces

__all__ = [
    "AccessLogMiddleware",
    "BodyLimitMiddleware",
    "HeadAsGet",
    "PlainPath",
    "ResponseDigestMiddleware",
    "TracingMiddleware",
    "content_digest",
    "is_intact",
]

_log = structlog.get_logger()

#: The status in logs and metrics of a request whose caller hung up (nginx's convention).
_HUNG_UP = 499


class AccessLogMiddleware:
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


class TracingMiddleware:
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


_SHA_256 = re.compile(r"sha-256=:([^:]*):")


def content_digest(body: bytes) -> str:
    """Return the header's value for a body."""
    digest = base64.b64encode(hashlib.sha256(body).digest())
    return f"sha-256=:{digest.decode()}:"


def is_intact(digest: str, header: str) -> bool:
    """Say whether a body's digest is the one of its header; True where that names no sha-256."""
    found = _SHA_256.search(header)
    return found is None or found.group() == digest


#: How much all the bodies that are arriving may hold together, in bodies of the largest size.
_MAX_ARRIVING = 8

#: Smaller bodies are digested in less time than a thread takes to be handed them.
_LARGE_BYTES = 128 << 10


class ResponseDigestMiddleware:
    """Adds its digest to each answer that is sent in one piece, so that a caller can check it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, its answer's start held back until the body is known."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start: Message | None = None

        async def add_digest(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if start is not None:
                if not message.get("more_body", False):
                    digest = await _digest(message.get("body", b""))
                    MutableHeaders(scope=start)["Content-Digest"] = digest
                await send(start)
                start = None
            await send(message)

        await self._app(scope, receive, add_digest)


class BodyLimitMiddleware:
    """Reads a body before its route does; answers 413 as soon as it is over the limit.

    One that takes longer than ``timeout_s`` is a 408, one that its `Content-Digest` does not fit a
    400, and 429 says that the bodies of others fill the room for those that arrive. Answers say in
    `Request-Content-Digest` what was read: a digest may have been garbled as well as its body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._num_arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with its whole body, or answer why not."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(headers, receive)
            digest = "" if body is None else await _digest(body)
            if not is_intact(digest, headers.get("content-digest", "")):
                raise CorruptedBody("the body does not fit its Content-Digest: send it again")
        except TimeoutError:
            await self._refuse_slow(scope, receive, send)
            return
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is None:  # the caller hung up
            return
        scope[BODY_BYTES] = len(body)
        await self._app(scope, _replay(body, receive), _naming(digest, send))

    async def _read(self, headers: Headers, receive: Receive) -> bytes | None:
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        more = True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                self._take(message.get("body", b""), body)
                more = message.get("more_body", False)
            return bytes(body)
        finally:
            self._num_arriving -= len(body)

    def _take(self, piece: bytes, body: bytearray) -> None:
        body += piece
        self._num_arriving += len(piece)
        if len(body) > self._max_bytes:
            raise self._too_large()
        if self._num_arriving > _MAX_ARRIVING * self._max_bytes:
            raise Overloaded(
                f"{self._num_arriving} bytes of bodies are arriving; send this one again later",
                retry_after_s=1,
            )

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._max_bytes} bytes: send the samples in several requests"
        )

    async def _refuse_slow(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = BodyTimeout(f"the body did not arrive within {self._timeout_s:g} s; send it again")
        response = error_response(error)
        response.headers["Connection"] = "close"  # what may still drip in is not waited for
        await response(scope, receive, send)


async def _digest(body: bytes) -> str:
    """Return a body's digest; that of a large one is computed in a thread, which needs no lock."""
    if len(body) < _LARGE_BYTES:
        return content_digest(body)
    return await asyncio.to_thread(content_digest, body)


def _naming(digest: str, send: Send) -> Send:
    """Return a `send` that names the body which the answer is to."""

    async def name(message: Message) -> None:
        if message["type"] == "http.response.start":
            # For clients of version 0.1.0, which refuse a response with one digest of the two.
            MutableHeaders(scope=message)["Request-Content-Digest"] = digest
        await send(message)

    return name


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
