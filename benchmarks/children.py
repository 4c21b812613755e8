"""Child processes: a function that runs in one, and a server for the time of a context."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["end_on_sigterm", "free_port", "function_in_child", "server", "stop"]

_STOP_S = 20


@contextmanager
def function_in_child(
    make: Callable[..., Callable[..., Any]], *arguments: Any
) -> Iterator[Callable[..., Any]]:
    """Call ``make(*arguments)`` in a child process; yield a function that calls its result there.

    The process ends with the context. An exception there ends it as well, with its traceback on
    standard error, and raises `EOFError` here.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, make, arguments), daemon=True)
    process.start()
    theirs.close()

    def call(*given: Any) -> Any:
        ours.send(given)
        return ours.recv()

    try:
        ours.recv()  # wait until it is built
        yield call
    finally:
        ours.close()
        process.join(_STOP_S)
        process.kill()


def _answer(pipe: Any, make: Callable[..., Callable[..., Any]], arguments: Sequence[Any]) -> None:
    function = make(*arguments)
    pipe.send(None)
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        pipe.send(function(*given))


@contextmanager
def server(
    command: Sequence[str],
    url: str,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    patience_s: float = 300,
) -> Iterator[str]:
    """Run a server while the context is open; yield its base URL once ``url`` answers 200.

    Raises `RuntimeError` with the end of the log if it never does. From now on SIGTERM ends this
    process like an interrupt, so that no server outlives it.
    """
    end_on_sigterm()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )
    try:
        _until_ready(process, url, log, patience_s)
        yield url[: url.index("/", len("http://"))]
    finally:
        stop(process)


def end_on_sigterm() -> None:
    """Let SIGTERM end this process like an interrupt, so that its contexts are closed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path, patience_s: float) -> None:
    until = time.monotonic() + patience_s
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    tail = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"{' '.join(process.args)} never answered {url}; its log ends:\n{tail}")


def stop(process: subprocess.Popen[bytes], patience_s: float = _STOP_S) -> None:
    """End the process and its children, which share its session."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
