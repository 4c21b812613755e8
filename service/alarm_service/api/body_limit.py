"""Request bodies: read whole, limited in size and time, and checked against their digests."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_service.api.error_handlers import error_response
from alarm_service.errors import BodyTimeout, CorruptedBody, Overloaded, ServiceError, TooLarge

__all__ = [
    "BODY_BYTES",
    "BodyLimitMiddleware",
    "ResponseDigestMiddleware",
    "content_digest",
    "is_intact",
]

#: The key in a request's scope of its body's size in bytes, set once the body was read.
BODY_BYTES = "alarm_body_bytes"

_SHA_256 = re.compile(r"sha-256=:([^:]*):")


def content_digest(body: bytes) -> str:
    """Return the value of `Content-Digest` for a body."""
    digest = base64.b64encode(hashlib.sha256(body).digest())
    return f"sha-256=:{digest.decode()}:"


def is_intact(digest: str, header: str) -> bool:
    """Return whether a body matches its digest header; True if the header has no sha-256."""
    found = _SHA_256.search(header)
    return found is None or found.group() == digest


#: Maximum total size of bodies being received, in multiples of the maximum body size.
_MAX_ARRIVING = 8

#: A smaller body is hashed faster than it is handed to a thread.
_LARGE_BYTES = 128 << 10


class ResponseDigestMiddleware:
    """Adds `Content-Digest` to each response that is sent in one piece."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request; the response starts once its body is known."""
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
    """Reads the body before the route does; answers 413 as soon as it is over the limit.

    408 is a body that takes longer than ``timeout_s``, 400 one that differs from its
    `Content-Digest`, and 429 means that too many bytes are being received at once. Responses have
    the digest of what was read as `Request-Content-Digest`: the header may have been damaged too.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._num_arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with its whole body, or answer with the error."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(headers, receive)
            digest = "" if body is None else await _digest(body)
            if not is_intact(digest, headers.get("content-digest", "")):
                raise CorruptedBody("the body does not match its Content-Digest: send it again")
        except TimeoutError:
            await self._refuse_slow(scope, receive, send)
            return
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is None:  # the client disconnected
            return
        scope[BODY_BYTES] = len(body)
        await self._app(scope, _replay(body, receive), _with_request_digest(digest, send))

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
                f"{self._num_arriving} bytes of request bodies are being received; retry later",
                retry_after_s=1,
            )

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._max_bytes} bytes: send the samples in several requests"
        )

    async def _refuse_slow(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = BodyTimeout(f"the body did not arrive within {self._timeout_s:g} s; send it again")
        response = error_response(error)
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, receive, send)


async def _digest(body: bytes) -> str:
    """Return a body's digest; a large body is hashed in a thread, which releases the GIL."""
    if len(body) < _LARGE_BYTES:
        return content_digest(body)
    return await asyncio.to_thread(content_digest, body)


def _with_request_digest(digest: str, send: Send) -> Send:
    """Return a `send` that adds the digest of the request's body to the response."""

    async def add_digest(message: Message) -> None:
        if message["type"] == "http.response.start":
            # For clients of version 0.1.0, which refuse a response with one digest of the two.
            MutableHeaders(scope=message)["Request-Content-Digest"] = digest
        await send(message)

    return add_digest


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns the body first."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
