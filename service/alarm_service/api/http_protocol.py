"""uvicorn's HTTP/1.1 protocol with bounded headers: size, number and time."""

from __future__ import annotations

from asyncio import BaseTransport, TimerHandle, Transport
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from alarm_service.api.body_limit import content_digest
from alarm_service.api.error_handlers import error_response
from alarm_service.errors import (
    BodyTimeout,
    CorruptedBody,
    HeadersTooLarge,
    Overloaded,
    ServiceError,
    URLTooLong,
)

__all__ = ["HeaderLimits", "bounded_protocol"]

#: Bytes passed to the parser at once; counts lag behind by at most as many.
_PIECE_BYTES = 64 << 10

#: What most servers and proxies accept, and more than a browser sends.
_MAX_URL_BYTES = 16 << 10

#: Pipelined requests on one connection.
_MAX_PIPELINED = 128

#: The bytes of a chunk's size line and its end, without extensions.
_CHUNK_BYTES = 16

#: How long input is read and dropped after a refusal, so that the response reaches the client: a
#: socket that is closed with unread data resets the connection.
_LINGER_S = 2.0


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """Limits of a request before its key is checked; ``refused`` is called with each refusal.

    ``unread_timeout_s`` is how long the rest of a body is read after its request was answered.
    """

    max_bytes: int
    max_headers: int
    timeout_s: float
    unread_timeout_s: float
    refused: Callable[[ServiceError], None]


def bounded_protocol(limits: HeaderLimits) -> type[HttpToolsProtocol]:
    """Return a protocol class for uvicorn that enforces these limits."""
    return cast(type[HttpToolsProtocol], type("_Bounded", (_Protocol,), {"limits": limits}))


class _Protocol(HttpToolsProtocol):
    """Refuses a request over the limits with an error response, and closes the connection.

    The parser does not report an unfinished header, so bytes are counted as they arrive. Requests
    that were sent before the refused one on the same connection are answered first. Trailers are
    counted like headers, and not read: a request's headers are those it began with.
    """

    limits: HeaderLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._is_in_message = False
        self._is_in_head = False
        self._num_begun = 0
        self._head_bytes = 0  # as received; without pieces that began in another request
        self._parsed_bytes = 0  # of the URL and the headers that are complete
        self._body_bytes = 0
        self._num_chunks = 0
        self._framing_bytes = 0  # of chunk extensions and trailers
        self._fault: ServiceError | None = None
        self._refusal: ServiceError | None = None
        self._drops_input = False  # further input is dropped
        self._running: RequestResponseCycle | None = None
        self._head_timer: TimerHandle | None = None
        self._close_timer: TimerHandle | None = None
        super().__init__(*args, **kwargs)

    def connection_made(self, transport: BaseTransport) -> None:
        """Start; a connection that sends nothing is closed like an idle one."""
        super().connection_made(cast(Transport, transport))
        self._begin_idling()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._stop_head_timer()
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, piece by piece, until something is refused."""
        self._unset_keepalive_if_required()
        view = memoryview(data)
        for at in range(0, len(view), _PIECE_BYTES):
            if self._drops_input or self.transport.is_closing():
                return
            self._take(view[at : at + _PIECE_BYTES])
        if not self._is_in_message and not self._is_busy:
            self._begin_idling()

    def _take(self, piece: memoryview) -> None:
        if self._is_in_head:
            self._head_bytes += len(piece)
        elif not self._is_in_message:
            self._start_head_timer()
        is_first = not self._is_in_message
        num_begun = self._num_begun
        in_body = self._is_in_message and not self._is_in_head
        body_bytes, num_chunks = self._body_bytes, self._num_chunks
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            # What follows belongs to another protocol, which is not supported: the request is
            # answered, and nothing after it.
            self._drops_input = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError:
            self._refuse(
                self._fault
                or CorruptedBody("this is not an HTTP/1.1 request; send it again, unchanged")
            )
            return
        if self._is_in_head:
            self._start_head_timer()
            if is_first and self._num_begun == num_begun + 1:
                self._head_bytes = len(piece)
            if self._head_bytes > self.limits.max_bytes:
                self._refuse(self._too_large())
        elif in_body and self._is_in_message:
            known = self._body_bytes - body_bytes + (self._num_chunks - num_chunks) * _CHUNK_BYTES
            self._framing_bytes = max(0, self._framing_bytes + len(piece) - known)
            if self._framing_bytes > self.limits.max_bytes:
                self._refuse(self._too_large())

    # The parser's callbacks. What they raise ends the parsing.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_in_message = self._is_in_head = True
        self._num_begun += 1
        self._head_bytes = self._parsed_bytes = self._framing_bytes = 0
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._fail(
                Overloaded(
                    f"{_MAX_PIPELINED} requests are pending on this connection: read their "
                    "responses first",
                    retry_after_s=1,
                )
            )
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the URL."""
        super().on_url(url)
        self._parsed_bytes += len(url)
        if len(self.url) > min(_MAX_URL_BYTES, self.limits.max_bytes):
            self._fail(
                URLTooLong(f"the URL is over {min(_MAX_URL_BYTES, self.limits.max_bytes)} bytes")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; drop a trailer."""
        if not self._is_in_head:
            return
        self._parsed_bytes += len(name) + len(value) + len(b": \r\n")
        if self._parsed_bytes > self.limits.max_bytes:
            self._fail(self._too_large())
        if len(self.headers) >= self.limits.max_headers:
            self._fail(
                HeadersTooLarge(
                    f"the request has over {self.limits.max_headers} headers (--max-headers)"
                )
            )
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Run the request, or queue it after those before it."""
        super().on_headers_complete()
        self._is_in_head = False
        self._stop_head_timer()

    def on_chunk_header(self) -> None:
        """Count a chunk."""
        self._num_chunks += 1

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Be ready for the next request."""
        self._is_in_message = self._is_in_head = False
        super().on_message_complete()
        if self._close_timer is not None:  # the rest of a body whose request was answered
            self._close_timer.cancel()
            self._close_timer = None

    # Responses.

    def on_response_complete(self) -> None:
        """Go on with the next request, or answer the refused one after the last."""
        super().on_response_complete()
        if self.transport.is_closing() or self._is_busy:
            return
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._is_in_message and not self._is_in_head:
            self._close_in(self.limits.unread_timeout_s)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        return False  # a client may offer other protocols; the response is HTTP/1.1

    @property
    def _is_busy(self) -> bool:
        """Whether a request is being answered, or waits for that."""
        running = self._running
        is_running = running is not None and not (running.response_complete or running.disconnected)
        return is_running or bool(self.pipeline)

    def _fail(self, error: ServiceError) -> None:
        self._fault = error
        raise error

    def _refuse(self, error: ServiceError) -> None:
        self._refusal, self._drops_input = error, True
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        self.limits.refused(error)
        if self._is_in_message and not self._is_in_head:
            self._abandon(self.cycle)
        if not self.transport.is_closing() and not self._is_busy:
            self._send_refusal(error)

    def _abandon(self, cycle: RequestResponseCycle) -> None:
        """Abort a request in the middle of its body."""
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        elif cycle.response_started:
            self.transport.close()
        else:
            cycle.disconnected = True
            cycle.message_event.set()

    def _send_refusal(self, error: ServiceError) -> None:
        response = error_response(error)
        headers = [*self.server_state.default_headers, *response.raw_headers]
        body = bytes(response.body)
        headers += [(b"content-digest", content_digest(body).encode()), (b"connection", b"close")]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._close_in(_LINGER_S)

    def _close_in(self, seconds: float) -> None:
        if self._close_timer is None:
            self._close_timer = self.loop.call_later(seconds, self.transport.close)

    def _begin_idling(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._is_in_head:
            self._refuse(
                BodyTimeout(f"the headers did not arrive within {self.limits.timeout_s:g} s")
            )
        elif not self._is_in_message and not self._is_busy:
            self.transport.close()  # empty lines, which begin no request

    def _too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"the request's headers are over {self.limits.max_bytes} bytes (--max-header-bytes)"
        )
