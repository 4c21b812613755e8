"""Callers that speak HTTP badly: what they send is what a test says, byte for byte."""

import socket
from collections.abc import Iterator
from pathlib import Path

from processes import PATIENCE_S


def head(path: str = "/score", **headers: object) -> bytes:
    """The start of a POST; an underscore in a header's name is a hyphen."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(lines)}\r\n".encode()


def chunks(piece: bytes, count: int) -> Iterator[bytes]:
    """A chunked body's pieces, without its end."""
    for _ in range(count):
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


def status_of(connection: socket.socket) -> int:
    """Wait for an answer's first line."""
    connection.settimeout(PATIENCE_S)
    answer = b""
    while b"\r\n" not in answer and (piece := connection.recv(4096)):
        answer += piece
    return int(answer.split()[1])


def resident_mib(pid: int) -> float:
    """The memory of a process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20
