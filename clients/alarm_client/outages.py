"""What a relay says of its server on standard error."""

from __future__ import annotations

import sys
import threading
import time


class Outage:
    """Tells on standard error when the server goes and when it is back, however many calls wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None

    def goes_on(self, reason: str) -> None:
        """A call did not get through."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()
                tell(f"{reason}; calls wait")

    def is_over(self) -> None:
        """A call got through."""
        with self._lock:
            if self._since is not None:
                tell(f"it answers again, after {time.monotonic() - self._since:.1f} s")
                self._since = None


def tell(message: str) -> None:
    """Say something on standard error."""
    sys.stderr.write(f"relay: {message}\n")
    sys.stderr.flush()
