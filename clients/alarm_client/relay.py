"""`python -m alarm_client.relay URL`: a server that is gone, full or loading becomes a slow one.

For trainers that take a URL and do not ask twice. It listens beside the trainer, passes each call
on, and asks again, as a client would, until there is an answer or the call's time is over.
"""

from __future__ import annotations

import argparse
import json
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from alarm_client.actions import Reply, Send, Steps
from alarm_client.address import DEFAULT_URL, find_address
from alarm_client.connections import Connections
from alarm_client.digests import is_intact
from alarm_client.drivers import Abandoned, drive
from alarm_client.errors import AlarmConnectionError, AlarmError
from alarm_client.exchange import settle, start_call
from alarm_client.outages import Outage, tell
from alarm_client.retries import Retries

_PATIENCE = Retries(longest=4.0, max_reconnects=sys.maxsize)
_IDLE_SECONDS = 600.0
_SENT_ON = ("Authorization", "Content-Type", "Traceparent", "Tracestate", "X-Request-Id")
# Of one connection (RFC 9110, section 7.6.1), or written anew.
_NOT_SENT_BACK = {"connection", "content-encoding", "content-length", "keep-alive", "server"}
_NOT_SENT_BACK |= {"transfer-encoding", "date", "upgrade"}


class Relay(ThreadingHTTPServer):
    """Listens on `(host, port)` and passes on to `url`, a thread a connection.

    A scoring call (any POST but those under `/admin`) is tried again for up to `timeout` seconds,
    or for its own `X-Request-Timeout-Ms` if that is shorter. All else is asked once. It has no key:
    callers send their own.
    """

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, url: str, host: str, port: int, timeout: float = 600.0) -> None:
        address = find_address(url, None)
        if "@" in url:
            raise ValueError("a relay adds no key: put it into the URL that the trainer is given")
        self.target = address.url
        self._timeout = timeout
        self._connections = Connections(replace(address, authorization=None), None)
        self._outage = Outage()
        super().__init__((host, port), _Handler)

    def relayed(self, send: Send, seconds: float | None, caller_is_gone: threading.Event) -> Reply:
        """The server's final reply, or an error of the contract's shape in its place."""
        is_scoring = send.method == "POST" and not send.path.startswith("/admin")
        timeout = min(self._timeout, seconds or self._timeout)
        call = start_call(self.target, timeout, _PATIENCE)
        steps: Steps[Reply]
        if is_scoring:
            steps = settle(call, send.method, send.path, send.body, send.headers)
        else:
            steps = _once(replace(send, timeout=timeout))
        try:
            return drive(steps, self._send, 1, caller_is_gone)
        except AlarmConnectionError as error:
            return _refusal(502, "unavailable", str(error))
        except AlarmError as error:
            return _refusal(504, "deadline_passed", str(error))

    def server_close(self) -> None:
        """Listen no more, and leave the server."""
        super().server_close()
        self._connections.close()

    def _send(self, send: Send) -> Reply:
        try:
            reply = self._connections.send(send)
        except AlarmConnectionError as error:
            self._outage.goes_on(str(error))
            raise
        self._outage.is_over()
        return reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: Relay

    def do_POST(self) -> None:
        try:
            self._answer(self._asked())
        except (Abandoned, ConnectionError, TimeoutError):
            self.close_connection = True

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        """The server logs its requests; here are outages alone."""

    def _asked(self) -> Reply:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdigit():
            self.close_connection = True
            return _refusal(411, "bad_request", "a body needs its Content-Length here")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("the caller hung up within its body")
        given = {name.lower(): value for name, value in self.headers.items()}
        if not is_intact(body, given):
            return _refusal(400, "garbled", "the body does not fit its Content-Digest")
        kept = {name: self.headers[name] for name in _SENT_ON if name in self.headers}
        send = Send(self.command, self.path, body or None, 0.0, kept)
        milliseconds = self.headers.get("X-Request-Timeout-Ms", "")
        seconds = int(milliseconds) / 1000 if milliseconds.isdigit() else None
        return self.server.relayed(send, seconds, _HungUp(self.connection))

    def _answer(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name not in _NOT_SENT_BACK:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)


class _HungUp(threading.Event):
    """Set once the caller at the other end of a connection has closed it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def is_set(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            return bool(selector.select(0)) and not self._connection.recv(1, socket.MSG_PEEK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Relay until SIGTERM or an interrupt."""
    parser = argparse.ArgumentParser(prog="python -m alarm_client.relay", description=__doc__)
    parser.add_argument("url", help=f"of the server, such as {DEFAULT_URL}")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a call may take")
    given = parser.parse_args(arguments)
    try:
        relay = Relay(given.url, given.host, given.port, given.timeout)
    except (ValueError, OSError) as error:
        tell(str(error))
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with relay:
        tell(f"http://{given.host}:{relay.server_port} is {relay.target}")
        try:
            relay.serve_forever()
        except KeyboardInterrupt:
            return 130
    return 0


def _once(send: Send) -> Steps[Reply]:
    reply: Reply = yield send
    return reply


def _refusal(status: int, code: str, message: str) -> Reply:
    error = {"code": code, "message": message, "retryable": status >= 500}
    body = json.dumps({"error": error}).encode()
    return Reply(status, {"content-type": "application/json"}, body)


if __name__ == "__main__":
    sys.exit(main())
