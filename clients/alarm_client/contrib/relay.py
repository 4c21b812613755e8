"""A retrying HTTP proxy, `python -m alarm_client.relay URL...`, for trainers that do not retry.

It runs beside the trainer and forwards each request; scoring calls are retried with the client's
backoff until their deadline, and distributed over several servers.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import quote, urlsplit

from alarm_client._address import DEFAULT_URL, find_addresses
from alarm_client._retry import (
    LOG,
    Availability,
    Call,
    Flow,
    Host,
    Reply,
    Retries,
    Send,
    request_with_retries,
    start_call,
)
from alarm_client._runners import FlowCancelled, run_flow
from alarm_client._transport import Connections, is_intact
from alarm_client.errors import AlarmConnectionError, AlarmError

_RETRIES = Retries(longest=4.0)
_IDLE_SECONDS = 600.0
_PIECE_BYTES = 1 << 20
# ASCII digits (`str.isdigit` accepts others too), up to the length of a valid size or time.
_NUMBER = re.compile(r"[0-9]{1,15}")
# Characters allowed in a path and a query besides letters and digits (RFC 3986), and escapes.
_OF_PATHS = "/?:@!$&'()*+,;=-._~%"
# Requests with this key have parts of a group, which must all reach the same server.
_GROUP_SIZE = b"group_size"
_SENT_ON = ("Authorization", "Content-Type", "Traceparent", "Tracestate", "X-Request-Id")
# Hop-by-hop headers (RFC 9110, section 7.6.1), and headers that the relay sets itself.
_NOT_SENT_BACK = {"connection", "content-encoding", "content-length", "keep-alive", "server"}
_NOT_SENT_BACK |= {"transfer-encoding", "date", "upgrade"}


class Relay(ThreadingHTTPServer):
    """Listens on `(host, port)` and forwards to `url`, with a thread per connection.

    `url` may be several URLs, as a list or separated by commas. Scoring calls (any POST but those
    under `/admin`) go to the servers in turn; those that contain the word `group_size` go to the
    first available one. Scoring calls are retried on the next available server for up to `timeout`
    seconds, or for their own `X-Request-Timeout-Ms` if that is shorter. Other calls are sent once,
    to the first server that can be reached. The relay has no API key: callers send their own.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, url: str | Sequence[str], host: str, port: int, timeout: float = 600.0
    ) -> None:
        addresses = find_addresses(url, None)
        if any("@" in one for one in ([url] if isinstance(url, str) else url)):
            raise ValueError(
                "the relay sends no API key: put the key into the URL that the trainer uses"
            )
        self.target = ",".join(address.url for address in addresses)
        self._timeout = timeout
        self._connections = [
            Connections(replace(address, authorization=None), None) for address in addresses
        ]
        self._hosts = [
            Host(address.url, Availability(), index) for index, address in enumerate(addresses)
        ]
        self._turns = count()
        super().__init__((host, port), _Handler)

    def forward(self, send: Send, seconds: float | None, caller_is_gone: threading.Event) -> Reply:
        """The final response of a server, or an error in the server's format."""
        is_admin = send.path.startswith("/admin")
        if is_admin and len(self._hosts) > 1:
            message = "the relay has several servers: send this request to each of them directly"
            return _refusal(400, "bad_request", message)
        timeout = min(self._timeout, seconds or self._timeout)
        call = start_call(self._hosts, timeout, _RETRIES, turns=self._turns)
        steps: Flow[Reply]
        if send.method == "POST" and not is_admin:
            is_partial = _GROUP_SIZE in send.path.encode() or _GROUP_SIZE in (send.body or b"")
            call = call.placed(is_held=is_partial)
            steps = request_with_retries(call, send.method, send.path, send.body, send.headers)
        else:
            steps = _send_once(call, replace(send, timeout=timeout))
        try:
            return run_flow(steps, self._send, 1, caller_is_gone)
        except AlarmConnectionError as error:
            if not error.retryable:
                return _refusal(400, "bad_request", str(error))
            return _refusal(502, "unavailable", str(error))
        except AlarmError as error:
            return _refusal(504, "deadline_passed", str(error))

    def server_close(self) -> None:
        """Stop listening, and close the connections to the servers."""
        super().server_close()
        for connections in self._connections:
            connections.close()

    def _send(self, send: Send) -> Reply:
        host = self._hosts[send.host]
        begun = time.monotonic()
        try:
            reply = self._connections[send.host].send(send)
        except AlarmConnectionError as error:
            if error.retryable:
                host.server.failed(str(error), begun, time.monotonic(), self._timeout)
            raise
        host.server.recovered(host.url, time.monotonic())
        return reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: Relay

    def do_POST(self) -> None:
        try:
            try:
                reply = self._get_reply()
            except (FlowCancelled, ConnectionError, TimeoutError):
                raise
            except Exception:  # the caller does not retry, so it must get a response
                LOG.exception("a request to %s failed", self.path.partition("?")[0][:200])
                self.close_connection = True
                reply = _refusal(500, "internal", "the relay failed; its standard error says why")
            self._answer(reply)
        except (FlowCancelled, ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST

    def log_message(self, *_: object) -> None:
        """Log nothing: the server logs requests; the relay logs outages only."""

    def _get_reply(self) -> Reply:
        lengths = set(self.headers.get_all("Content-Length", ["0"]))
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return _refusal(411, "bad_request", "a request body requires Content-Length")
        if len(lengths) > 1 or not _NUMBER.fullmatch(min(lengths)):
            self.close_connection = True
            return _refusal(400, "bad_request", "Content-Length must be one integer")
        body = self._body(int(min(lengths)))
        given = {name.lower(): value for name, value in self.headers.items()}
        if not is_intact(body, given):
            return _refusal(400, "garbled", "the body does not match its Content-Digest")
        headers = {name: self.headers[name] for name in _SENT_ON if name in self.headers}
        path = _target(self.path)
        if path is None:
            return _refusal(400, "bad_request", "the request's path must begin with /")
        send = Send(self.command, path, body or None, 0.0, headers)
        milliseconds = self.headers.get("X-Request-Timeout-Ms", "")
        seconds = int(milliseconds) / 1000 if _NUMBER.fullmatch(milliseconds) else None
        return self.server.forward(send, seconds, _Disconnected(self.connection))

    def _body(self, length: int) -> bytes:
        """The body, read in chunks, so that a false Content-Length reserves no memory."""
        body = bytearray()
        while len(body) < length:
            piece = self.rfile.read(min(length - len(body), _PIECE_BYTES))
            if not piece:
                raise ConnectionError("the caller disconnected while sending the body")
            body += piece
        return bytes(body)

    def _answer(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name not in _NOT_SENT_BACK:
                self.send_header(name, value)
        is_head = self.command == "HEAD"
        length = reply.headers.get("content-length", "0") if is_head else str(len(reply.body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if not is_head:
            self.wfile.write(reply.body)


class _Disconnected(threading.Event):
    """Set once the caller has closed its connection."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def is_set(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            return bool(selector.select(0)) and not self._connection.recv(1, socket.MSG_PEEK)


def _target(path: str) -> str | None:
    """The path and query to forward, or None where the request target has none.

    Bytes that are not ASCII are percent-encoded. The host of an absolute URL, as sent to proxies
    (RFC 9112, section 3.2.2), is ignored.
    """
    if not path.startswith("/"):
        try:
            parts = urlsplit(path)
        except ValueError:
            return None
        if parts.scheme not in {"http", "https"}:
            return None
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(path.encode("latin-1"), safe=_OF_PATHS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or an interrupt."""
    parser = argparse.ArgumentParser(prog="python -m alarm_client.relay", description=__doc__)
    parser.add_argument(
        "url", nargs="+", help=f"URL of the server, or URLs of several, such as {DEFAULT_URL}"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on [default 127.0.0.1]"
    )
    parser.add_argument("--port", type=int, default=8001, help="port to listen on [default 8001]")
    parser.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        help="seconds per call, including retries [default 600]",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="relay: %(message)s")
    try:
        relay = Relay(options.url, options.host, options.port, options.timeout)
    except (ValueError, OSError, OverflowError) as error:
        _print(str(error))
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with relay:
        _print(f"http://{options.host}:{relay.server_port} forwards to {relay.target}")
        try:
            relay.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


def _print(message: str) -> None:
    sys.stderr.write(f"relay: {message}\n")
    sys.stderr.flush()


def _send_once(call: Call, send: Send) -> Flow[Reply]:
    """The reply of the first server that can be reached, with one attempt per server."""
    first, *others = call.hosts
    try:
        reply: Reply = yield replace(send, request_id=call.next_request_id(), host=first.index)
    except AlarmConnectionError as error:
        if not error.retryable or not others:
            raise
    else:
        return reply
    return (yield from _send_once(replace(call, hosts=tuple(others)), send))


def _refusal(status: int, code: str, message: str) -> Reply:
    error = {"code": code, "message": message, "retryable": status >= 500}
    body = json.dumps({"error": error}).encode()
    return Reply(status, {"content-type": "application/json"}, body)


if __name__ == "__main__":
    sys.exit(main())
