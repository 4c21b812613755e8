"""The console that prints tables and paragraphs to standard output."""

from __future__ import annotations

import errno
import os

from rich.console import Console

__all__ = ["StdoutConsole"]


class StdoutConsole(Console):
    """Raises `BrokenPipeError` if the reader has closed the pipe; rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        """See `rich.console.Console.on_broken_pipe`."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
