"""The parts of a large call run concurrently, stay in order and are cancelled together."""

import asyncio
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from client_stand_in import StandIn, refusal

from alarm_client._address import find_address
from alarm_client._retry import Send
from alarm_client._transport import Connections
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import DeadlineExceeded, InvalidRequest
from alarm_client.types import Sample

SAMPLES = [Sample(prompt="p", completion="x" * (index % 7)) for index in range(300)]
LENGTHS = [float(index % 7) for index in range(300)]


async def test_async_parts_run_concurrently_up_to_max_concurrency():
    inner, flying, most = StandIn(max_samples=30), 0, 0

    async def handler(request):
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        flying -= 1
        return inner(request)

    transport = httpx.MockTransport(handler)
    async with AsyncAlarmClient(max_concurrency=3, transport=transport) as client:
        assert (await client.score(SAMPLES)).scalars() == LENGTHS
    assert most == 3


def test_blocking_parts_run_concurrently():
    inner, meeting = StandIn(max_samples=150), threading.Barrier(2, timeout=60)

    def handler(request):
        if request.url.path == "/score":
            meeting.wait()  # passes only if both parts are under way
        return inner(request)

    with AlarmClient(transport=httpx.MockTransport(handler)) as client:
        assert client.score(SAMPLES).scalars() == LENGTHS


def test_failed_part_raises_without_waiting_for_others():
    inner, released = StandIn(max_samples=150), threading.Event()
    both_under_way, waited_out = threading.Barrier(2, timeout=60), threading.Event()

    def handler(request):
        if request.url.path == "/score":
            if both_under_way.wait() == 0:
                return refusal(422, "schema", "bad part")
            if not released.wait(20):
                waited_out.set()
        return inner(request)

    client = AlarmClient(transport=httpx.MockTransport(handler))
    with pytest.raises(InvalidRequest, match="bad part"):
        client.score(SAMPLES)
    assert not waited_out.is_set()
    released.set()


def test_process_ends_after_a_failed_part_while_another_waits():
    script = """
import threading
import httpx
from client_stand_in import StandIn, refusal
from alarm_client import AlarmClient, InvalidRequest, Sample

inner, under_way = StandIn(max_samples=150), threading.Barrier(2)

def handler(request):
    if request.url.path == "/score":
        if under_way.wait() == 0:
            return refusal(422, "schema", "bad part")
        threading.Event().wait()
    return inner(request)

client = AlarmClient(transport=httpx.MockTransport(handler))
sample = Sample(prompt="p", completion="c")
try:
    client.score([sample] * 300)
except InvalidRequest:
    print("refused")
"""
    command = [sys.executable, "-c", script]
    folder = Path(__file__).parent
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.returncode) == ("refused\n", 0), ended.stderr


class Drip(httpx.SyncByteStream, httpx.AsyncByteStream):
    """An answer that never ends."""

    def __iter__(self):
        while True:
            yield b" "

    async def __aiter__(self):
        while True:
            await asyncio.sleep(0)
            yield b" "


def test_slow_response_ends_blocking_call_at_its_deadline():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip()))
    ticks = itertools.count()
    connections = Connections(find_address(None, None), transport, lambda: next(ticks))
    with pytest.raises(DeadlineExceeded, match="no response within the remaining 5 s"):
        connections.send(Send("GET", "/models", None, timeout=5.0))
    connections.close()
    assert next(ticks) == 7  # the start, then six reads: 6 > 0 + 5


async def test_slow_response_ends_async_call_at_its_deadline():
    transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Drip()))
    async with AsyncAlarmClient(transport=transport, timeout=0.05) as client:
        with pytest.raises(DeadlineExceeded, match="no response within"):
            await client.score(SAMPLES[:1])


async def test_failed_part_cancels_other_parts_of_async_call():
    inner, cancelled = StandIn(max_samples=150), asyncio.Event()

    async def handler(request):
        if request.url.path == "/score" and len(inner.requests) == 1:
            inner(request)
            await asyncio.sleep(0)
            return refusal(422, "schema", "bad part")
        if request.url.path == "/score":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return inner(request)

    async with AsyncAlarmClient(transport=httpx.MockTransport(handler)) as client:
        with pytest.raises(InvalidRequest, match="bad part"):
            await client.score(SAMPLES)
        assert cancelled.is_set()


def test_cached_limits_apply_to_small_calls():
    server = StandIn(max_samples=150)
    with AlarmClient(transport=server.transport) as client:
        client.score(SAMPLES)
        client.score(SAMPLES[:200])
    assert server.paths == ["/models"] + ["/score"] * 4


def test_limits_are_requested_once_per_client():
    server = StandIn()
    with AlarmClient(transport=server.transport) as client:
        client.score(SAMPLES)
        client.score(SAMPLES)
    assert server.paths == ["/models", "/score", "/score"]
