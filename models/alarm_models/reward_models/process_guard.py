"""The guard: a program that runs a worker process, and kills its whole process tree at the end.

    python guard.py LIFELINE PROGRAM ARGUMENTS...

LIFELINE is a pipe's descriptor. When its other end is closed (by whoever started this, or because
that process is gone, however it ended), or when PROGRAM itself ends, every process that PROGRAM has
started is killed: on Linux also those that have left its process group or their parents. It is
self-contained: it runs without the packages around it, so that it is small and starts at once.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

#: From linux/prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36

#: How long processes that do not die, such as those in an uninterruptible read, are waited for.
_END_S = 5

#: How often to look again while processes are being killed.
_PAUSE_S = 0.02

_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(lifeline: int, arguments: Sequence[str]) -> None:
    """Run a program until it ends, or until ``lifeline`` does."""
    os.set_inheritable(lifeline, False)
    # Orphans of the program become this process's children, rather than init's.
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signals = _signals()
    program = os.fork()
    if program == 0:
        _run(arguments)
    # The program's pipes are its own: they must end with it.
    null_device = os.open(os.devnull, os.O_RDWR)
    os.dup2(null_device, 0)
    os.dup2(null_device, 1)
    while _runs(program):
        readable, _, _ = select.select([lifeline, signals], [], [])
        if lifeline in readable:
            break
        if any(number in _TO_END for number in os.read(signals, 512)):
            break
    _end(program, signals)


def _signals() -> int:
    """Return a descriptor that has a byte, its number, for each signal that comes."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, *_TO_END):
        signal.signal(number, lambda *_: None)
    return readable


def _run(arguments: Sequence[str]) -> None:
    try:
        os.setsid()
        # Should this guard be killed itself, the program goes with it.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execv(arguments[0], list(arguments))  # noqa: S606 - this interpreter
    finally:
        os._exit(127)


def _runs(program: int) -> bool:
    """Reap what has ended; say whether the program has not."""
    try:
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
            if pid == program:
                return False
    except ChildProcessError:
        return False


def _end(program: int, signals: int) -> None:
    deadline = time.monotonic() + _END_S
    while time.monotonic() < deadline:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(program, signal.SIGKILL)
        left = list(_descendants(os.getpid()))
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left and not _has_children():
            return
        if select.select([signals], [], [], _PAUSE_S)[0]:
            os.read(signals, 512)


def _has_children() -> bool:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def _descendants(pid: int) -> Iterator[int]:
    """Yield the descendants of a process, as /proc lists them, zombies left out."""
    children: dict[int, list[int]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # The command before it, in brackets, may hold anything.
                    state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found = [pid]
    while found:
        below = children.get(found.pop(), [])
        found += below
        yield from below


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux":
        return
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
    # Nothing is left to be done, and nothing may delay it.
    os._exit(0)
