"""Raw HTTP connections that send exactly the bytes a test gives."""

import socket
from collections.abc import Iterator
from pathlib import Path

from processes import PATIENCE_S


def head(path: str = "/score", **headers: object) -> bytes:
    """Return the head of a POST; underscores in header names become hyphens."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(lines)}\r\n".encode()


def chunks(piece: bytes, count: int) -> Iterator[bytes]:
    """Return the chunks of a chunked body, without the last."""
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def status_of(connection: socket.socket) -> int:
    """Return the status line of the response."""
    connection.settimeout(PATIENCE_S)
    answer = b""
    while b"\r\n" not in answer and (piece := connection.recv(4096)):
        answer += piece
    return int(answer.split()[1])


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20
