"""Random response bytes over real sockets raise errors of the client."""

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alarm_client._retry import Retries
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import AlarmError
from alarm_client.types import Sample

SAMPLES = [Sample(prompt="p", completion="abc")]
ONCE = Retries(first=0.0, longest=0.0, max_reconnects=0)
LINES = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 503 Not now",
    b"HTTP/9.9 200 OK",
    b"HTTP/1.1 99 OK",
    b"SSH-2.0-OpenSSH_9.6",
    b"\x16\x03\x01\x02",
    b"",
]
HEADERS = [
    b"Content-Length: 2",
    b"Content-Length: \xc2\xb2",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br, deflate",
    b"Content-Type: application/json; charset=\xff",
    b"Content-Digest: sha-256=:AAAA:",
    b"Retry-After: \xb2",
    b"Retry-After: Thu, 99 Foo 2026",
    b"Location: http://[",
    b"Set-Cookie: \xff=\xfe; expires=never",
    b"X: \xff\x00",
    b" folded",
    b"no colon",
    b": no name",
]
BODIES = [b"{}", b"[" * 100_000, b'{"error": {"code": 1}}', b"zz\r\n", b"\xff\xfe", b""]
ANSWERS = st.one_of(
    st.builds(
        lambda line, headers, body: b"\r\n".join([line, *headers, b"", body]),
        st.sampled_from(LINES),
        st.lists(st.sampled_from(HEADERS), max_size=3),
        st.one_of(st.sampled_from(BODIES), st.binary(max_size=20)),
    ),
    st.binary(max_size=40),
)


class Answering(threading.Thread):
    """Answers each connection with the bytes of `answer` and closes it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answer = b""
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"]}" not in request and (piece := connection.recv(65536)):
                    request += piece
                connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()


@pytest.fixture(scope="module")
def answering() -> Iterator[Answering]:
    server = Answering()
    yield server
    server.close()


@settings(max_examples=100, deadline=None)
@given(ANSWERS)
def test_response_of_random_bytes_raises_client_error(answering: Answering, answer: bytes) -> None:
    answering.answer = answer

    async def ask() -> None:
        async with AsyncAlarmClient(answering.url, retries=ONCE, timeout=0.5) as client:
            with pytest.raises(AlarmError):
                await client.score(SAMPLES)

    asyncio.run(ask())
    with (
        AlarmClient(answering.url, retries=ONCE, timeout=0.5) as client,
        pytest.raises(AlarmError),
    ):
        client.score(SAMPLES)
    assert not client.has_answered or b'"error"' in answer
