"""The server's log: JSON only, and few lines for what any client can cause."""

import asyncio
import contextlib
import io
import json
import logging
import os
import resource
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from processes import PATIENCE_S, alarm_serve, connect, recipe_of, until_event
from served import until
from tiny import Checkpoint

from alarm_service.observability import logging as logs
from alarm_service.observability.repeated_log import RepeatedLog


class Lines(io.StringIO):
    """The output of a log, as JSON objects."""

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Configure logging like the server; reset it afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    lines = Lines()
    for hook in ("excepthook", "unraisablehook"):
        monkeypatch.setattr(f"sys.{hook}", None)
    monkeypatch.setattr("threading.excepthook", None)
    logs.configure_logs("info", lines)
    logs.capture_uncaught()
    yield lines
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


def fail() -> None:
    raise ValueError("a thread's\nown")


async def test_log_of_libraries_warnings_threads_and_the_loop_is_json(lines: Lines) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid\nHTTP %s", "request")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("of a library", stacklevel=1)
    thread = threading.Thread(target=fail, name="own")
    thread.start()
    thread.join()
    asyncio.get_running_loop().call_exception_handler(
        {"message": "never retrieved", "exception": OSError("gone")}
    )
    http, warning, failed, loop = lines.events
    assert (http["event"], http["logger"]) == ("Invalid\nHTTP request", "uvicorn.error")
    assert (http["level"], warning["logger"]) == ("warning", "py.warnings")
    assert "of a library" in warning["event"]
    assert (failed["event"], failed["thread"]) == ("uncaught exception in a thread", "own")
    assert "ValueError: a thread's\nown" in failed["exception"]
    assert (loop["event"], loop["level"]) == ("never retrieved", "error")
    assert "OSError: gone" in loop["exception"]


def test_log_values_are_shortened_except_log_texts(lines: Lines) -> None:
    log = structlog.get_logger()
    log.info("request", path="a" * 100_000)
    log.info("sample", completion="a" * 100_000)
    assert [max(len(str(value)) for value in line.values()) for line in lines.events] == [
        2000,
        100_000,
    ]


async def test_repeated_log_writes_the_first_at_once_and_then_counts(lines: Lines) -> None:
    log, repeated = structlog.get_logger(), RepeatedLog(period_s=0.01)
    for route in ("/score", "/score", "other", "/score"):
        repeated.write(401, log.info, "request", route=route, status=401)
    repeated.write(404, log.info, "request", route="other", status=404)
    assert [line["status"] for line in lines.events] == [401, 404]
    await until(lambda: len(lines.events) == 3)
    assert (lines.events[2]["count"], lines.events[2]["routes"]) == (3, {"/score": 2, "other": 1})
    await until(lambda: not repeated._windows)
    repeated.write(401, log.info, "request", route="/score", status=401)
    assert "count" not in lines.events[3]


@pytest.fixture(scope="module")
def recipe(llama: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("logs") / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    return file


def test_log_of_thousands_of_keyless_requests_is_json_and_a_line_a_second(recipe: Path) -> None:
    with alarm_serve(recipe, "--api-key", "sesame") as process:
        until_event(process, "ready")
        started = time.monotonic()
        for _ in range(20):
            with connect(process) as caller:
                caller.sendall(b"GET /models HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
                caller.shutdown(socket.SHUT_WR)
                while caller.recv(65536):
                    pass
        for garbage in (
            b"HTUP\r\n\r\n",
            b"\x16\x03\x01\x00",
            b"GET / HTTP/1.1\r\nA: " + b"a" * 99999,
        ):
            for _ in range(20):
                with connect(process) as caller, contextlib.suppress(ConnectionError):
                    caller.sendall(garbage)
                    caller.recv(4096)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "a"}
        httpx.get(f"{process.url}/models", headers=upgrade, timeout=PATIENCE_S)
        seconds = time.monotonic() - started
        code, log = process.stop(signal.SIGTERM)
    events = [json.loads(line) for line in log.splitlines()]
    assert code == 0
    for status, num, event in ((401, 2001, "request"), (400, 40, "request refused"),
                               (431, 20, "request refused")):  # fmt: skip
        own = [one for one in events if (one["event"], one.get("status")) == (event, status)]
        assert len(own) <= seconds + 2
        assert sum(one.get("count", 1) for one in own) <= num


def test_log_reports_exhausted_and_free_descriptors(recipe: Path) -> None:
    with alarm_serve(recipe) as process, ExitStack() as callers:
        until_event(process, "ready")
        pid = process.popen.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        num_open = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (num_open + 8, hard))
        for _ in range(40):
            callers.enter_context(connect(process))
        assert until_event(process, _OUT)["limit"] == num_open + 8
        callers.close()
        until_event(process, "file descriptors are free again")
        answer = httpx.get(f"{process.url}/health/live", timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert process.stop(signal.SIGTERM)[0] == 0


_OUT = (
    "out of file descriptors: new connections are reset; raise `ulimit -n`, or have callers share "
    "connections"
)
