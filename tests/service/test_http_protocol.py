"""HTTP/1.1 over real sockets: requests over a limit never reach the application."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tcp import PATIENCE_S, over_tcp

from alarm_service.api.http_protocol import HeaderLimits, bounded_protocol
from alarm_service.errors import ServiceError

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass
class Echo:
    """Responds with the path, headers and body of each request, and records it."""

    port: int = 0
    seen: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.seen.append(scope["path"])
        if scope["path"] == "/unread":
            await Response("early")(scope, receive, send)
            return
        body = await request.body()
        headers = [name.decode() for name, _ in scope["headers"]]
        said = {"path": scope["path"], "headers": headers, "body": body.decode()}
        await Response(json.dumps(said))(scope, receive, send)

    def note(self, error: ServiceError) -> None:
        self.refused.append(error.status)


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    limits = HeaderLimits(
        max_bytes=8192, max_headers=20, timeout_s=0.3, unread_timeout_s=0.3, refused=echo.note
    )
    with over_tcp(
        echo, "off", http=bounded_protocol(limits), timeout_keep_alive=PATIENCE_S
    ) as port:
        echo.port = port
        yield echo


def sent(echo: Echo, *pieces: bytes) -> bytes:
    """Send pieces, and return what came back until the server closed."""
    with socket.create_connection(("127.0.0.1", echo.port), timeout=PATIENCE_S) as caller:
        with suppress(ConnectionError):
            for piece in pieces:
                caller.sendall(piece)
        return until_closed(caller)


def until_closed(caller: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while piece := caller.recv(65536):
            answer += piece
    return answer


def answers_in(answer: bytes) -> list[tuple[int, Any]]:
    """The statuses and bodies of answers that have a `Content-Length`."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        (length,) = (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        found.append((int(head.split()[1]), json.loads(rest[:length])))
        answer = rest[length:]
    return found


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([GET + b"A: " + b"a" * 9000 + b"\r\n\r\n"], 431),
        ([GET + b"A: ", *[b"a" * 1000] * 2000], 431),
        ([GET + b"A: " + b"a" * 9000], 431),
        ([GET, *[b"A: a\r\n"] * 4000], 431),
        ([GET + b"A: a\r\n" * 20 + b"\r\n"], 431),
        ([GET, b"a" * 100_000], 431),
        ([b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n"], 414),
        ([b"GET /", *[b"?" * 1000] * 2000], 414),
        ([CHUNKED, b"1;a=", *[b"a" * 1000] * 2000], 431),
        ([CHUNKED, *[b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa=1\r\na\r\n"] * 2000], 431),
        ([CHUNKED, b"1\r\na\r\n0\r\n", *[b"A: " + b"a" * 1000 + b"\r\n"] * 2000], 431),
        ([CHUNKED, b"1\r\na\r\n0\r\nA: ", *[b"a" * 1000] * 2000], 431),
    ],
    ids=[
        "one header", "a header without end", "half a header", "headers without end",
        "too many headers",
        "a name without end", "a URL", "a query without end",
        "a chunk extension", "many chunk extensions", "trailers", "a trailer without end",
    ],
)  # fmt: skip
def test_protocol_headers_over_the_limit_are_refused_and_the_connection_closed(
    echo: Echo, pieces: list[bytes], status: int
) -> None:
    ((found, body),) = answers_in(sent(echo, *pieces))
    assert found == status
    assert set(body["error"]) == {"code", "message", "retryable"}
    assert echo.refused == [status]


@pytest.mark.parametrize(
    "start", [b"", GET + b"\r\n"], ids=["a new connection", "a connection in use"]
)
@pytest.mark.parametrize("head", [b"G", GET, GET + b"A: a"])
def test_protocol_headers_that_do_not_arrive_are_a_408(
    echo: Echo, start: bytes, head: bytes
) -> None:
    *_, (status, body) = answers_in(sent(echo, start + head))
    assert (status, body["error"]["code"]) == (408, "too_slow")
    assert body["error"]["message"] == "the headers did not arrive within 0.3 s"


def test_protocol_slow_headers_are_a_408(echo: Echo) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=PATIENCE_S) as caller:
        caller.sendall(GET)
        give_up = time.monotonic() + PATIENCE_S
        with suppress(ConnectionError):
            while not echo.refused:
                assert time.monotonic() < give_up
                caller.sendall(b"A: a\r\n")
                time.sleep(0.05)
        ((status, _),) = answers_in(until_closed(caller))
    assert status == 408


def test_protocol_empty_lines_without_a_request_are_closed_without_an_answer(echo: Echo) -> None:
    assert sent(echo, b"\r\n" * 100) == b""


def test_protocol_connections_within_the_limits_are_served_again_and_again(echo: Echo) -> None:
    head = GET + b"A: " + b"a" * 8000 + b"\r\n\r\n"
    last = GET + b"A: a\r\n" * 17 + b"Connection: close\r\n\r\n"
    found = answers_in(sent(echo, head, head, POST + b"Content-Length: 1\r\n\r\na", last))
    assert [status for status, _ in found] == [200] * 4
    assert echo.refused == []


def test_protocol_long_chunked_body_does_not_count_as_header(echo: Echo) -> None:
    body = b"".join(b"1\r\na\r\n" for _ in range(20_000)) + b"0\r\n\r\n"
    head = CHUNKED.replace(b"Host: a", b"Host: a\r\nConnection: close")
    ((status, said),) = answers_in(sent(echo, head, body))
    assert (status, said["body"]) == (200, "a" * 20_000)


def test_protocol_trailers_are_dropped(echo: Echo) -> None:
    trailed = CHUNKED + b"1\r\na\r\n0\r\nAuthorization: b\r\n\r\n"
    found = answers_in(sent(echo, trailed + GET + b"Connection: close\r\n\r\n"))
    assert [said["headers"] for _, said in found] == [
        ["host", "transfer-encoding"],
        ["host", "connection"],
    ]


def test_protocol_earlier_pipelined_requests_are_answered_first(echo: Echo) -> None:
    first = b"GET /1 HTTP/1.1\r\n\r\n"
    second = b"GET /2 HTTP/1.1\r\n\r\n"
    found = answers_in(sent(echo, first + second + GET + b"A: " + b"a" * 9000 + b"\r\n\r\n"))
    assert [status for status, _ in found] == [200, 200, 431]
    assert [said["path"] for _, said in found[:2]] == ["/1", "/2"]


def test_protocol_pipelined_request_with_broken_body_is_refused_in_order(echo: Echo) -> None:
    found = answers_in(sent(echo, GET + b"\r\n" + CHUNKED + b"zz\r\n"))
    assert [status for status, _ in found] == [200, 400]
    assert echo.seen == ["/"]


def test_protocol_too_many_pipelined_requests_are_refused(echo: Echo) -> None:
    found = answers_in(sent(echo, b"GET / HTTP/1.1\r\n\r\n" * 2000))
    statuses = [status for status, _ in found]
    assert statuses[-1] == 429
    assert set(statuses[:-1]) == {200}
    assert len(statuses) <= 131


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01", b"HTUP / HTTP/1.1\r\n\r\n", GET + b"A\x00: a\r\n\r\n",
     b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", POST + b"Content-Length: -1\r\n\r\n",
     b"GET http://[ HTTP/1.1\r\n\r\n", CHUNKED + b"zz\r\n"],
)  # fmt: skip
def test_protocol_invalid_http_is_a_retryable_400(echo: Echo, garbage: bytes) -> None:
    ((status, body),) = answers_in(sent(echo, garbage))
    assert (status, body["error"]["code"], body["error"]["retryable"]) == (400, "garbled", True)


def test_protocol_offered_upgrade_is_ignored(echo: Echo) -> None:
    offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n"
    ((status, said),) = answers_in(sent(echo, GET + offer + b"what follows"))
    assert (status, said["path"]) == (200, "/")


def test_protocol_unread_body_does_not_keep_its_connection(echo: Echo) -> None:
    unread = b"POST /unread HTTP/1.1\r\nContent-Length: 1000000\r\n\r\na"
    assert sent(echo, unread).endswith(b"early")
