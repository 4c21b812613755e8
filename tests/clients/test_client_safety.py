"""Pickling, forking, new event loops and servers that die, over real sockets on this machine."""

import asyncio
import gc
import json
import multiprocessing
import os
import pickle
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from client_stand_in import StandIn, score_row

from alarm_client._retry import Retries
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import AlarmConnectionError
from alarm_client.types import Sample

SAMPLES = [Sample(prompt="p", completion="abc")]
AT_ONCE = Retries(first=0.0, longest=0.0, max_reconnects=2)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [score_row(sample) for sample in request["samples"]]
        answer = {"model": "rm", "fingerprint": "f", "scores": scores, "usage": {}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.num_deaths > 0:
            self.server.num_deaths -= 1
            self.wfile.write(body[:10])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.num_connections = server.num_deaths = 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_sequential_calls_share_a_connection(server):
    with AlarmClient(server.url) as client:
        for _ in range(3):
            assert client.score(SAMPLES).scalars() == [3.0]
    assert server.num_connections == 1


def test_closed_client_reopens(server):
    client = AlarmClient(server.url)
    for _ in range(2):
        with client:
            assert client.score(SAMPLES).scalars() == [3.0]
    assert server.num_connections == 2


def test_server_dying_in_its_response_is_retried(server):
    server.num_deaths = 2
    with AlarmClient(server.url, retries=AT_ONCE) as client:
        assert client.score(SAMPLES).scalars() == [3.0]


def test_server_always_dying_in_its_response_raises(server):
    server.num_deaths = 9
    with (
        AlarmClient(server.url, retries=AT_ONCE) as client,
        pytest.raises(AlarmConnectionError, match="connection broke"),
    ):
        client.score(SAMPLES)


def closed_port() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


async def test_closed_port_error_names_the_url():
    url = closed_port()
    message = f"is `alarm serve` running at {url}"
    with (
        AlarmClient(url, retries=AT_ONCE) as client,
        pytest.raises(AlarmConnectionError, match=message),
    ):
        client.score(SAMPLES)
    async with AsyncAlarmClient(url, retries=AT_ONCE) as other:
        with pytest.raises(AlarmConnectionError, match=message):
            await other.score(SAMPLES)


async def test_closed_port_is_given_up_after_connect_timeout():
    url = closed_port()
    message = rf"^{url}/score: cannot connect.*gave up after 0.2 s.*ALARM_URL"
    with (
        AlarmClient(url, connect_timeout=0.2) as client,
        pytest.raises(AlarmConnectionError, match=message) as caught,
    ):
        client.score(SAMPLES)
    async with AsyncAlarmClient(url, connect_timeout=0.2) as other:
        with pytest.raises(AlarmConnectionError, match=message):
            await other.score(SAMPLES)
    assert caught.value.retryable
    assert (client.has_answered, other.has_answered) == (False, False)


def test_https_to_plain_http_server_error_mentions_tls(server):
    url = server.url.replace("http:", "https:")
    with (
        AlarmClient(url, retries=AT_ONCE) as client,
        pytest.raises(AlarmConnectionError, match=f"SSL.*does it speak TLS at {url}"),
    ):
        client.score(SAMPLES)


async def test_has_answered_after_a_response_is_true(server):
    with AlarmClient(server.url) as client:
        assert not client.has_answered
        client.score(SAMPLES)
        assert client.has_answered
    async with AsyncAlarmClient(server.url) as other:
        await other.score(SAMPLES)
        assert other.has_answered
        # Elsewhere another machine may be at the same address.
        assert not pickle.loads(pickle.dumps(other)).has_answered


def test_client_in_use_is_picklable(server):
    with AlarmClient(server.url, timeout=9.0) as client:
        client.score(SAMPLES)
        copy = pickle.loads(pickle.dumps(client))
    with copy:
        assert copy.score(SAMPLES).scalars() == [3.0]
    assert repr(copy) == f"AlarmClient('{server.url}', timeout=9)"


def test_async_client_in_use_is_picklable(server):
    client = AsyncAlarmClient(server.url)
    asyncio.run(client.score(SAMPLES))
    copy = pickle.loads(pickle.dumps(client))
    assert asyncio.run(copy.score(SAMPLES)).scalars() == [3.0]


def score_in_child(
    client: AlarmClient, answers: "multiprocessing.SimpleQueue[list[float]]"
) -> None:
    answers.put([client.has_answered, *client.score(SAMPLES).scalars()])
    client.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_child_opens_its_own_connections(server):
    fork = multiprocessing.get_context("fork")
    with AlarmClient(server.url) as client:
        client.score(SAMPLES)
        answers = fork.SimpleQueue()
        child = fork.Process(target=score_in_child, args=(client, answers))
        child.start()
        child.join(60)
        assert (child.exitcode, answers.get()) == (0, [True, 3.0])
        # The parent's connection lives on: the child closed only its own.
        assert client.score(SAMPLES).scalars() == [3.0]
    assert server.num_connections == 2


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_event_loop_per_call_leaves_no_open_connections(server):
    client = AsyncAlarmClient(server.url)
    asyncio.run(client.score(SAMPLES))
    gc.collect()
    before = num_open_files()
    for _ in range(5):
        assert asyncio.run(client.score(SAMPLES)).scalars() == [3.0]
    assert len(client._connections[0]._clients) == 1
    # One a loop on the server's side may still be closing: none of ours is among them.
    assert num_open_files() <= before + 5
    assert server.num_connections == 6


async def test_async_calls_on_one_loop_share_connections(server):
    async with AsyncAlarmClient(server.url) as client:
        await client.score(SAMPLES)
        results = await asyncio.gather(*[client.score(SAMPLES) for _ in range(8)])
        assert [result.scalars() for result in results] == [[3.0]] * 8
        await client.score(SAMPLES)
    assert server.num_connections <= 8


async def test_unreferenced_async_client_closes_while_loop_runs():
    closed = asyncio.Event()
    server = StandIn()
    transport = server.transport

    async def aclose() -> None:
        closed.set()

    transport.aclose = aclose
    client = AsyncAlarmClient(transport=transport)
    await client.score(SAMPLES)
    del client
    gc.collect()
    await asyncio.wait_for(closed.wait(), 60)
