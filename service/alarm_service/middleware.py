"""What happens to a request before its route: a log line, the key, its rate, the body's size."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Collection

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_service.errors import ServiceError, TooLarge, Unauthorized
from alarm_service.keys import Keys
from alarm_service.limiting import RateLimits
from alarm_service.metrics import Metrics
from alarm_service.responses import error_response

__all__ = ["AccessLog", "BodyLimit", "RateLimit", "RequireKey", "body_tokens", "one_request"]

_log = structlog.get_logger()

#: The status in logs and metrics of a request whose caller hung up (nginx's convention).
_HUNG_UP = 499

#: What the middleware leaves in a request's scope for the next: whose key it is, its body's bytes.
_CALLER, _BODY_BYTES = "alarm_caller", "alarm_body_bytes"

#: What may be asked for as often as one likes: it costs nothing, and watchers ask often.
_FREE = ("/health/", "/metrics")

_BYTES_A_TOKEN = 4


class AccessLog:
    """Counts, times and logs each request; routes it does not know share one label."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

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
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.answered(route, status, seconds)
            level = "debug" if route.startswith(("/health", "/metrics")) else "info"
            getattr(_log, level)(
                "request", method=scope["method"], route=route, status=status, seconds=seconds
            )


class RequireKey:
    """Lets in who brings a key, as a bearer token or as the password of HTTP Basic.

    Health checks need none.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 401."""
        is_open = scope["type"] != "http" or scope["path"].startswith("/health/")
        if not is_open:
            key = _key_in(Headers(scope=scope).get("authorization", ""))
            caller = None if key is None else self._keys.find(key)
            if caller is None:
                await _unauthorized()(scope, receive, send)
                return
            scope[_CALLER] = caller
        await self._app(scope, receive, send)


def _key_in(authorization: str) -> bytes | None:
    scheme, _, given = authorization.partition(" ")
    key = given.strip().encode("latin-1")  # the header's own bytes
    if scheme.lower() == "bearer":
        return key
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(key, validate=True).partition(b":")[2]
    except binascii.Error:
        return None


def _unauthorized() -> Response:
    response = error_response(
        Unauthorized("send the server's key: `Authorization: Bearer KEY`, or as Basic's password")
    )
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


class RateLimit:
    """Answers 429 to a caller that has sent more than it may; health and metrics cost nothing."""

    def __init__(self, app: ASGIApp, limits: RateLimits, cost: Callable[[Scope], float]) -> None:
        self._app = app
        self._limits = limits
        self._cost = cost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 429."""
        if scope["type"] == "http" and not scope["path"].startswith(_FREE):
            try:
                self._limits.charge(scope.get(_CALLER), self._cost(scope))
            except ServiceError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def one_request(_: Scope) -> float:
    """Cost the same, whatever is asked."""
    return 1


def body_tokens(scope: Scope) -> float:
    """Cost what a body that was read may hold in tokens."""
    return float(scope.get(_BODY_BYTES, 0) // _BYTES_A_TOKEN)


class BodyLimit:
    """Reads a body before its route does, and answers 413 as soon as it is over the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with its whole body, or answer 413."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is None:  # the caller hung up
            return
        scope[_BODY_BYTES] = len(body)
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._max_bytes} bytes: send the samples in several requests"
        )
