"""Where log lines go: a file descriptor that may be full, closed or stuck, which stops nobody."""

from __future__ import annotations

import io
import json
import os
import select
import threading
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

if TYPE_CHECKING:  # a type of Python 3.12, which checkers know
    from _typeshed import ReadableBuffer

__all__ = ["log_stream"]

#: A pipe that is writable takes as much without blocking (PIPE_BUF of Linux).
_PIECE_BYTES = 4096


def log_stream(descriptor: int) -> TextIO:
    """Return a stream that loses the lines that a descriptor does not take at once.

    A full disk, a pipe that nobody reads or that is closed: serving goes on. Once lines are taken
    again, the first says how many were lost.
    """
    raw = cast(BinaryIO, _Lossy(descriptor))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)


class _Lossy(io.RawIOBase):
    """Writes whole lines or, where it cannot, counts them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self._num_lost = 0
        self._is_cut = False

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, lines: ReadableBuffer) -> int:
        data = bytes(lines)
        with self._lock:
            if self._num_lost and self._is_taken(_loss(self._num_lost)):
                self._num_lost = 0
            if self._num_lost or not self._is_taken(data):
                self._num_lost += data.count(b"\n")
        return len(data)

    def _is_taken(self, lines: bytes) -> bool:
        # What was cut short before is ended first, so that a line begins where a line should.
        data = (b"\n" if self._is_cut else b"") + lines
        num_written = 0
        try:
            while num_written < len(data) and self._poll.poll(0):
                piece = data[num_written : num_written + _PIECE_BYTES]
                num_written += os.write(self._descriptor, piece)
        except OSError:
            pass  # full or closed: there is nowhere to say so
        if num_written:
            self._is_cut = num_written < len(data)
        return num_written == len(data)


def _loss(num_lines: int) -> bytes:
    return json.dumps({"event": "log lines were lost", "lines": num_lines}).encode() + b"\n"
