"""A server that is killed and started again on the same port."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from processes import command_of, environment


@dataclass
class Restartable:
    """`alarm serve` on a fixed port."""

    port: int
    flags: tuple[str, ...]
    popen: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        self.popen = subprocess.Popen(
            command_of("serve", "--port", str(self.port), "--device", "cpu", *self.flags),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

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
