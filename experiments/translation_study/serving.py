"""Runs the `alarm` command of this environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alarm_client import AlarmClient

__all__ = ["alarm", "served"]

_COMMAND = str(Path(sys.executable).with_name("alarm"))
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def alarm(*arguments: str) -> str:
    """Run an `alarm` command; return what it prints."""
    done = subprocess.run(
        [_COMMAND, *arguments], env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"alarm {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def served(recipe: Path, log: Path) -> Iterator[str]:
    """Run `alarm serve` with a recipe on a free port; yield its address once it is ready."""
    process = subprocess.Popen(
        [_COMMAND, "serve", "--recipe", str(recipe), "--port", "0"],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = _address(process, log)
        with AlarmClient(url) as client:
            client.wait_ready(timeout=300)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Return the address that the server logs; the rest of its log goes to a file."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := _ADDRESS.search(line):
            threading.Thread(target=_copy, args=(process, log), daemon=True).start()
            return found.group()
    raise SystemExit(f"alarm serve ended:\n{''.join(lines)[-4000:]}")


def _copy(process: subprocess.Popen[str], log: Path) -> None:
    with log.open("a") as file:
        for line in process.stderr:
            file.write(line)
            file.flush()


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}
