"""Runs `alarm` in a subprocess, with a recipe for a small checkpoint."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from forking import ALARM, Forked

PATIENCE_S = 60

Popen = subprocess.Popen[str] | Forked
Start = Callable[..., Popen]


@dataclass(frozen=True)
class Process:
    """A running `alarm serve`; `url` is the address that it logged."""

    popen: Popen
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def stop(self, sig: int) -> tuple[int, str]:
        """Send a signal; return the exit code and the remaining standard error."""
        self.popen.send_signal(sig)
        return self.ended()

    def ended(self) -> tuple[int, str]:
        _, errors = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, errors


def recipe_of(folder: Path) -> str:
    """Return the TOML of a recipe with one sequence classifier."""
    return f"""
[models.rm]
kind = "sequence"
checkpoint = "{folder}"
template = "Human: {{prompt}} Assistant: {{completion}}"
[holistic]
model = "rm"
[hierarchy]
rule = "holistic_only"
"""


def environment() -> dict[str, str]:
    # One thread is enough for a small model, and leaves the other core to the tests.
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command_of(*arguments: str) -> list[str]:
    """Return the `alarm` command with these arguments."""
    return [sys.executable, "-c", ALARM, *arguments]


def alarm(*arguments: str, log: IO[Any] | None = None) -> Forked:
    """Start an `alarm` command by a fork, with all imports done; see `Forked`."""
    return Forked(*arguments, environ=environment(), log=log)


def alarm_from_scratch(*arguments: str) -> subprocess.Popen[str]:
    """Start an `alarm` command as a user does; it imports torch for seconds."""
    return subprocess.Popen(
        command_of(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


@contextmanager
def alarm_serve(recipe: Path | str, *flags: str) -> Iterator[Process]:
    """Serve a recipe on a free port; yield once it listens, even if models are still loading."""
    with alarm_serving("--recipe", str(recipe), *flags) as process:
        yield process


@contextmanager
def alarm_serving(*flags: str, start: Start = alarm) -> Iterator[Process]:
    """Serve what flags say on a free port; yield once it listens, even while loading."""
    popen = start("serve", "--port", "0", "--device", "cpu", *flags)
    try:
        yield Process(popen, _event(popen, "listening")["url"])
    finally:
        popen.kill()
        popen.communicate()


def until_event(process: Process, event: str) -> dict[str, Any]:
    """Wait for a log line with an event."""
    return _event(process.popen, event)


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def connect(process: Process) -> socket.socket:
    return socket.create_connection(process.address, timeout=PATIENCE_S)


def _event(popen: Popen, event: str) -> dict[str, Any]:
    assert popen.stderr is not None
    lines = []
    for line in popen.stderr:
        lines.append(line)
        found: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if found.get("event") == event:
            return found
    raise AssertionError(f"{event!r} was never logged, but {''.join(lines)}")
