"""Whether the process can still open files and accept connections."""

from __future__ import annotations

import os
import resource

import structlog

__all__ = ["Descriptors"]

_log = structlog.get_logger()


class Descriptors:
    """Logs when file descriptors run out, which the event loop does not, and when some are free.

    New connections are reset meanwhile; those that are open are served.
    """

    def __init__(self) -> None:
        self._are_free = True

    def check(self) -> None:
        """Try to open one more, and log where that has changed."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            if self._are_free:
                self._are_free = False
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                _log.error(
                    "out of file descriptors: new connections are reset; raise `ulimit -n`, or "
                    "have callers share connections",
                    error=str(error),
                    limit=limit,
                )
        else:
            if not self._are_free:
                self._are_free = True
                _log.warning("file descriptors are free again")
