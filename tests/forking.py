"""Forks `alarm` commands, and other programs, from a process that has imported the server.

Python and the imports of torch and transformers take seconds of a command's start, a fork takes
milliseconds. From there on a forked command is like any other: it has its own pipes, environment
and signals, and ends as the interpreter ends.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, TextIO

_MOST_BYTES = 1 << 20

#: The `alarm` command.
ALARM = "import sys; from alarm_service.cli.main import main; sys.exit(main())"


class Forked:
    """A running program, with the methods of `subprocess.Popen` that tests call."""

    def __init__(
        self,
        *arguments: str,
        program: str = ALARM,
        environ: Mapping[str, str] = os.environ,
        read: IO[Any] | None = None,
        log: IO[Any] | None = None,
    ) -> None:
        """Run code that reads `read` or nothing; what it writes goes to `log`, or into pipes."""
        request = {
            "program": program,
            "arguments": arguments,
            "environ": dict(environ),
            "folder": os.getcwd(),
        }
        told, status = os.pipe()
        self.stdout: TextIO | None = None
        self.stderr: TextIO | None = None
        with open(os.devnull) as nothing, contextlib.ExitStack() as pipes:
            written = [log, log]
            if log is None:
                (out, self.stdout), (err, self.stderr) = _pipe(pipes), _pipe(pipes)
                written = [out, err]
            files = [one.fileno() for one in (read or nothing, *written)]
            socket.send_fds(_source(), [json.dumps(request).encode()], [*files, status])
        os.close(status)
        self.returncode: int | None = None
        self._has_ended = threading.Event()
        answers = os.fdopen(told)
        self.pid = int(answers.readline())
        threading.Thread(target=self._note_end, args=(answers,), daemon=True).start()

    def _note_end(self, answers: TextIO) -> None:
        with answers:
            self.returncode = int(answers.readline())
        self._has_ended.set()

    def poll(self) -> int | None:
        """Return the exit code, or the negative signal, if it has ended."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if not self._has_ended.wait(timeout):
            raise subprocess.TimeoutExpired("alarm", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it still writes, and wait for its end."""
        readers = ThreadPoolExecutor(2)
        try:
            out, err = readers.map(_rest, (self.stdout, self.stderr), timeout=timeout)
        finally:
            readers.shutdown(wait=False)
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


def run_forked(program: str, *arguments: str) -> tuple[int, str, str]:
    """Run code in a fork; return its exit code, output and standard error."""
    forked = Forked(*arguments, program=program)
    out, err = forked.communicate(timeout=60)
    return forked.wait(), out, err


def _rest(stream: TextIO | None) -> str:
    """Read a pipe to its end and close it."""
    if stream is None or stream.closed:
        return ""
    with stream:
        return stream.read()


def _pipe(pipes: contextlib.ExitStack) -> tuple[TextIO, TextIO]:
    """Return the end for writing, which is closed with the others, and the end for reading."""
    reader, writer = os.pipe()
    return pipes.enter_context(os.fdopen(writer, "w")), os.fdopen(reader)


@cache
def _source() -> socket.socket:
    """Return the socket of the process that forks; it ends when this one does."""
    program = (
        "import sys; sys.path.append(sys.argv[1]); import forking; sys.path.pop(); "
        "forking.serve_forks(int(sys.argv[2]))"
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
        content, files, _, _ = socket.recv_fds(requests, _MOST_BYTES, 4)
        if not content:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            return _kept(json.loads(content), files)
        for file in files:
            os.close(file)


def _kept(request: dict[str, Any], files: Sequence[int]) -> dict[str, Any]:
    """Fork once more; tell the pid and then the exit code in the parent, return in the child."""
    *own, status = files
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        for file in own:
            os.close(file)
        os.write(status, f"{pid}\n".encode())
        _, ended = os.waitpid(pid, 0)
        os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    for standard, file in enumerate(own):
        os.dup2(file, standard)
    for file in files:
        os.close(file)
    return request


def serve_forks(requests_fd: int) -> None:
    """Import what a server needs; in each fork, run the requested program."""
    from alarm_models.process_tuning import gc_frozen_imports, limit_openmp_spin

    limit_openmp_spin()
    with gc_frozen_imports():
        import alarm_service.server  # noqa: F401

    with socket.socket(fileno=requests_fd) as requests:
        request = _fork_at_requests(requests)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["folder"])
    sys.argv[1:] = request["arguments"]
    exec(request["program"], {"__name__": "__main__"})
