"""A server that is killed and started again on the same port."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from forking import Forked
from processes import alarm


@dataclass
class Restartable:
    """`alarm serve` on a fixed port."""

    port: int
    flags: tuple[str, ...]
    popen: Forked = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        with open(os.devnull, "w") as nowhere:
            flags = ("--port", str(self.port), "--device", "cpu", *self.flags)
            self.popen = alarm("serve", *flags, log=nowhere)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.popen.kill()
        self.popen.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def restartable(*flags: str) -> Iterator[Restartable]:
    server = Restartable(free_port(), flags)
    try:
        yield server
    finally:
        server.kill()
