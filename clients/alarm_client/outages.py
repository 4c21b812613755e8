"""Outages of a server: whether it has ever answered, and what is logged while it does not."""

from __future__ import annotations

import logging
import os
import threading

LOG = logging.getLogger("alarm_client")

_LOG_EVERY_SECONDS = 30.0


class Availability:
    """What is known of one server, shared by all calls of a client, in any thread or loop.

    `has_answered`: whether an ALaRM server has ever answered at this URL. An outage is logged when
    it begins, then every 30 seconds, and when it is over, however many calls wait.
    """

    def __init__(self) -> None:
        self.has_answered = False
        self._since: float | None = None
        self._logged = 0.0
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def failed(self, reason: str, now: float, patience: float) -> bool:
        """Note that a request got no answer, and whether that was logged.

        `patience`: for how many seconds more the call will try.
        """
        if self._pid != os.getpid():  # forked, perhaps while another thread held the lock
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            is_first = self._since is None
            if self._since is None:
                self._since = now
            elif now - self._logged < _LOG_EVERY_SECONDS:
                return False
            self._logged = now
            seconds = now - self._since
        if is_first:
            LOG.warning("%s (trying again for up to %.0f s)", reason, patience)
        else:
            LOG.warning("%s (unavailable for %.0f s, still trying)", reason, seconds)
        return True

    def recovered(self, url: str, now: float) -> None:
        """Note that a request got an answer."""
        since, self._since = self._since, None
        if since is not None:
            LOG.warning("%s answers again, after %.1f s", url, now - since)
