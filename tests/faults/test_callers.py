"""Callers that send too much, too slowly or garbage, or never read, do not affect others."""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping

import httpx
import pytest
from callers import load
from processes import PATIENCE_S, connect
from raw import chunks, head, resident_mib, status_of
from restarts import Restartable

from alarm_client._retry import Retries
from alarm_client.client import AlarmClient

MIB = 1 << 20
LIMIT = MIB
TOO_DEEP = b'{"samples": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NOT_UTF_8 = b'{"samples": [{"prompt": "\xff\xfe", "completion": "\xc3"}]}'


@pytest.fixture(autouse=True)
def _server_still_serves(server: Restartable, truth: Mapping[int, float]) -> Iterator[None]:
    """After each test, check that the next caller gets rewards."""
    yield
    with AlarmClient(server.url) as client:
        tally = load(client, truth, num_callers=1, num_calls=1)
    assert (tally.right, tally.wrong) == (4, [])


@pytest.fixture(scope="module")
def work_paths(server: Restartable) -> list[str]:
    """Return every path that takes a body, including the /compat routes."""
    document = httpx.get(f"{server.url}/openapi.json", timeout=PATIENCE_S).json()
    return [
        path.replace("{recipe}", "mini") for path, on in document["paths"].items() if "post" in on
    ]


def test_body_with_content_length_of_a_gigabyte_is_refused_before_it_is_sent(
    server: Restartable,
) -> None:
    with connect(server) as caller:
        caller.sendall(head(Content_Length=1 << 30))
        assert status_of(caller) == 413


def test_endless_body_is_refused_at_the_limit_without_using_memory(
    server: Restartable,
) -> None:
    before = resident_mib(server.popen.pid)
    with connect(server) as caller:
        caller.sendall(head(Transfer_Encoding="chunked"))
        with contextlib.suppress(ConnectionError):  # the server may close on what it does not want
            for piece in chunks(b" " * 65536, 64 * MIB // 65536):
                caller.sendall(piece)
        assert status_of(caller) == 413
    assert resident_mib(server.popen.pid) - before < 24


@pytest.mark.parametrize("body", [TOO_DEEP, NOT_UTF_8], ids=["too deep", "not UTF-8"])
def test_garbage_body_is_refused_on_every_path(
    server: Restartable, work_paths: list[str], body: bytes
) -> None:
    assert len(work_paths) > 8
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        for path in work_paths:
            answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
            # The routes of operators are closed to who has no key, whatever is sent.
            wanted = 403 if path.startswith("/admin/") else 400
            assert answer.status_code == wanted, (path, answer.text[:200])


def test_slow_body_gets_408_and_closes_the_connection(server: Restartable) -> None:
    with connect(server) as caller:
        caller.sendall(head(Content_Length=1000) + b"{")
        answer = b""
        while piece := caller.recv(4096):  # until the server closes
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    error = json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert error == {
        "code": "too_slow",
        "message": "the body did not arrive within 1.5 s; send it again",
        "retryable": True,
    }


def test_unfinished_bodies_use_bounded_memory_and_release_it(server: Restartable) -> None:
    before = resident_mib(server.popen.pid)
    with contextlib.ExitStack() as callers:
        crowd = [callers.enter_context(connect(server)) for _ in range(40)]
        for caller in crowd:
            caller.sendall(head(Content_Length=LIMIT) + b" " * (LIMIT - 1))
        statuses = [status_of(caller) for caller in crowd]
    assert set(statuses) == {408, 429}
    assert statuses.count(408) <= 8
    assert resident_mib(server.popen.pid) - before < 40


def test_body_with_wrong_digest_is_not_scored(server: Restartable) -> None:
    body = json.dumps({"samples": [{"prompt": "a", "completion": "b"}]})
    of_another = "sha-256=:" + "A" * 43 + "=:"
    headers = {"Content-Type": "application/json", "Content-Digest": of_another}
    answer = httpx.post(f"{server.url}/score", content=body, headers=headers, timeout=PATIENCE_S)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "garbled"
    assert answer.json()["error"]["retryable"]


def test_callers_that_never_read_do_not_block_others(
    server: Restartable, truth: Mapping[int, float]
) -> None:
    # Twenty times a hundred answers of a large page: more than any socket's buffer.
    pages = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    assert len(httpx.get(f"{server.url}/openapi.json", timeout=PATIENCE_S).content) > 50_000
    before = resident_mib(server.popen.pid)
    with contextlib.ExitStack() as callers:
        for _ in range(20):
            caller = callers.enter_context(socket.socket())
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            caller.connect(server.address)
            caller.sendall(pages)
        with AlarmClient(server.url, timeout=PATIENCE_S) as client:
            tally = load(client, truth, num_callers=4, num_calls=10)
    assert (tally.right, tally.wrong, tally.errors) == (40, [], {})
    assert resident_mib(server.popen.pid) - before < 60


def test_load_of_ten_times_the_queue_capacity_is_served_eventually(
    server: Restartable, truth: Mapping[int, float]
) -> None:
    # A call of 4 samples is about 190 tokens and 500 may wait: 28 callers are ten times.
    patient = Retries(first=0.1, longest=1.0)
    with AlarmClient(server.url, timeout=PATIENCE_S, retries=patient) as client:
        tally = load(client, truth, num_callers=28, num_calls=28)
    assert (tally.right, tally.wrong, tally.errors) == (112, [], {})
    metrics = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text
    assert 'status="429"' in metrics
