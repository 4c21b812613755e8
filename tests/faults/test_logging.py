"""A log that cannot be written does not keep the server from starting, serving and stopping."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx
import pytest
from processes import PATIENCE_S, command_of, environment
from restarts import free_port

from alarm_client.client import AlarmClient
from alarm_client.types import Sample
from alarm_service.observability.logging import log_stream

SAMPLES = [Sample(prompt="question: Who?", completion="Jane Austen wrote it.")]


@contextmanager
def logging_to(
    stderr: int | IO[bytes], *flags: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Serve `mini` with the given standard error; yield its process and URL once it is ready."""
    port = str(free_port())
    popen = subprocess.Popen(
        command_of("serve", "--port", port, "--device", "cpu", *flags),
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        env=environment(),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        with AlarmClient(url) as client:
            client.wait_ready(timeout=PATIENCE_S)
        yield popen, url
    finally:
        popen.kill()
        popen.wait()


def serve_and_stop(popen: subprocess.Popen[bytes], url: str, num_requests: int) -> int:
    """Request rewards, also with an invalid body; return the exit code after SIGTERM."""
    with AlarmClient(url, timeout=PATIENCE_S) as client:
        first = client.hierarchical_reward(SAMPLES).scalars()
        for _ in range(num_requests):
            assert client.hierarchical_reward(SAMPLES).scalars() == first
    assert httpx.post(f"{url}/score", content=b"{", timeout=PATIENCE_S).status_code == 422
    popen.send_signal(signal.SIGTERM)
    return popen.wait(PATIENCE_S)


@pytest.mark.slow
def test_server_with_log_on_full_disk_serves_and_stops() -> None:
    with open("/dev/full", "wb") as full, logging_to(full) as (popen, url):
        assert serve_and_stop(popen, url, num_requests=5) == 0


@pytest.mark.slow
def test_server_with_closed_log_pipe_serves_and_stops() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken, logging_to(broken) as (popen, url):
        assert serve_and_stop(popen, url, num_requests=5) == 0


@pytest.mark.slow
def test_server_with_blocked_log_pipe_serves_and_stops() -> None:
    reader, writer = os.pipe()  # takes 64 KiB, about 400 lines
    with open(writer, "wb") as stuck, logging_to(stuck) as (popen, url):
        assert serve_and_stop(popen, url, num_requests=600) == 0
    os.close(reader)


def test_log_stream_after_dropping_lines_reports_their_number() -> None:
    reader, writer = os.pipe()
    stream = log_stream(writer)
    line = json.dumps({"event": "x" * 4000}) + "\n"
    for _ in range(20):  # of which 16 pages hold no more than 16
        stream.write(line)
    taken = os.read(reader, 1 << 20)
    stream.write(line)
    after = os.read(reader, 1 << 20)
    os.close(reader)
    os.close(writer)
    num_taken = (taken + after).count(b'xxx"}\n') - 1
    assert 10 < num_taken < 20
    events = [json.loads(one) for one in after.splitlines() if one.startswith(b'{"event": "log')]
    assert events == [{"event": "log lines were lost", "lines": 20 - num_taken}]


def test_log_stream_on_full_disk_does_not_raise() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        assert log_stream(full.fileno()).write("a line\n") == 7


def test_log_stream_with_closed_reader_does_not_raise() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert log_stream(writer).write("a line\n") == 7
    os.close(writer)
