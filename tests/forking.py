"""Forks `alarm` commands from a process that has imported the server.

Python and the imports of torch and transformers take seconds of a command's start, a fork takes
milliseconds. From there on a forked command is like any other: it has its own pipes, environment
and signals, and ends as the interpreter ends.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, TextIO

_MOST_BYTES = 1 << 20


class Forked:
    """A running command, with the methods of `subprocess.Popen` that tests call."""

    def __init__(
        self, arguments: Sequence[str], environ: dict[str, str], log: IO[Any] | None = None
    ) -> None:
        """Run a command; what it writes goes to `log`, or into pipes."""
        request = {"arguments": list(arguments), "environ": environ, "folder": os.getcwd()}
        told, status = os.pipe()
        self._status = os.fdopen(told)
        self.stdout = self.stderr = None
        if log is not None:
            _send(request, log.fileno(), log.fileno(), status)
        else:
            (read_out, out), (read_err, err) = os.pipe(), os.pipe()
            self.stdout, self.stderr = os.fdopen(read_out), os.fdopen(read_err)
            _send(request, out, err, status)
            os.close(out)
            os.close(err)
        os.close(status)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit code, or the negative signal, if it has ended."""
        with self._lock:
            if self.returncode is None and select.select([self._status], [], [], 0)[0]:
                self.returncode = int(self._status.readline())
                self._status.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("alarm", timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it still writes, and wait for its end."""
        with ThreadPoolExecutor(2) as readers:
            out, err = readers.map(_rest, (self.stdout, self.stderr), timeout=timeout)
        self.wait(timeout)
        return out, err

    def send_signal(self, sig: int) -> None:
        """Send a signal if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _rest(stream: TextIO | None) -> str:
    """Read a pipe to its end and close it."""
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()


def _send(request: dict[str, Any], *files: int) -> None:
    socket.send_fds(_source(), [json.dumps(request).encode()], files)


@cache
def _source() -> socket.socket:
    """Return the socket of the process that forks; it ends when this one does."""
    program = (
        "import sys; sys.path.append(sys.argv[1]); import forking; sys.path.pop(); "
        "sys.exit(forking.run_forked(int(sys.argv[2])))"
    )
    ours, theirs = socket.socketpair()
    with theirs:
        popen = subprocess.Popen(
            [sys.executable, "-c", program, str(Path(__file__).parent), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        popen.wait()

    atexit.register(end)
    return ours


def _fork_at_requests(requests: socket.socket) -> dict[str, Any]:
    """Fork at each request, until there are no more; return a request in its fork."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        content, files, _, _ = socket.recv_fds(requests, _MOST_BYTES, 3)
        if not content:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            return _kept(json.loads(content), files)
        for file in files:
            os.close(file)


def _kept(request: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
    """Fork once more; tell the pid and then the exit code in the parent, return in the child."""
    out, err, status = files
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        os.write(status, f"{pid}\n".encode())
        _, ended = os.waitpid(pid, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for file in files:
        os.close(file)
    return request


def run_forked(requests_fd: int) -> int:
    """Import what a server needs; in each fork, run the requested command."""
    from alarm_models.process_tuning import gc_frozen_imports, limit_openmp_spin
    from alarm_service.cli.main import main

    limit_openmp_spin()
    with gc_frozen_imports():
        import alarm_models.modeling.loader
        import alarm_service.server  # noqa: F401

    with socket.socket(fileno=requests_fd) as requests:
        request = _fork_at_requests(requests)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.argv[1:] = request["arguments"]
    return main(request["arguments"])
