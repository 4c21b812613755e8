"""A server that refuses a trainer's first call and is killed at its first response."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
from forking import Forked
from processes import Process, alarm

#: The queue accepts one request at a time, whatever its size.
FULL = ("--max-queued-tokens", "1")
_LONG = [{"prompt": "Who wrote Emma?", "completion": "Jane Austen wrote Emma. " * 60}] * 8


class Troubled:
    """`alarm serve` on a fixed port; calls to routes other than `/score` count as the trainer's."""

    def __init__(self, *flags: str, is_killed: bool = True) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.statuses: list[int] = []
        self.num_starts = 0
        self._command = ["serve", "--recipe", "mini", "--port", str(port), "--device", "cpu"]
        self._command += [*FULL, *flags]
        self._is_killed = is_killed
        self._key = flags[flags.index("--api-key") + 1] if "--api-key" in flags else None
        self._is_over = False
        self._popen = self._start()
        others = [threading.Thread(target=self._keep_full) for _ in range(3)]
        self._threads = [threading.Thread(target=self._live), *others]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Kill it permanently."""
        self._is_over = True
        self._popen.kill()
        for thread in self._threads:
            thread.join()

    def _start(self) -> Forked:
        self.num_starts += 1
        return alarm(*self._command)

    def _live(self) -> None:
        while not self._is_over:
            self._watch(self._popen)
            self._popen.communicate()
            if not self._is_over:
                self._popen = self._start()

    def _watch(self, popen: Forked) -> None:
        """Read its log to the end; kill the first process at its first response."""
        for line in popen.stderr:
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("method") != "POST" or entry["route"] == "/score":
                continue
            self.statuses.append(entry["status"])
            if self._is_killed and self.num_starts == 1 and entry["status"] == 200:
                popen.kill()

    def _keep_full(self) -> None:
        """Keep the queue full until the trainer was refused once."""
        auth = None if self._key is None else ("another", self._key)
        with httpx.Client(base_url=self.url, timeout=30, auth=auth) as client:
            while 429 not in self.statuses and not self._is_over:
                with suppress(httpx.TransportError):
                    client.post("/score", json={"samples": _LONG})
                time.sleep(0.01)  # a refused caller does not spin


Server = Process | Troubled


@contextmanager
def troubled(*flags: str, is_killed: bool = True) -> Iterator[Troubled]:
    """Serve `mini` with these faults; without `is_killed` its queue is only full."""
    server = Troubled(*flags, is_killed=is_killed)
    try:
        yield server
    finally:
        server.end()
