"""Logs when the process runs out of file descriptors."""

from __future__ import annotations

import os
import resource

import structlog

__all__ = ["Descriptors"]

_log = structlog.get_logger()


class Descriptors:
    """Logs when file descriptors run out, and when some are free again.

    New connections are reset meanwhile; those that are open are served.
    """

    def __init__(self) -> None:
        self._are_free = True

    def check(self) -> None:
        """Try to open a file, and log if the result has changed."""
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
