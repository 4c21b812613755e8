"""What both clients hold: where to call, how long and how patiently."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from alarm_client.address import find_address
from alarm_client.calls import KnownLimits
from alarm_client.exchange import Call, start_call
from alarm_client.outages import Availability
from alarm_client.retries import Retries

# What clocks and sockets take without an overflow.
_LONGEST_SECONDS = 1e8


class Caller:
    """What both clients hold, and all that a pickled one carries: no connection is among it."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout: float,
        connect_timeout: float,
        max_concurrency: int,
        retries: Retries | None,
    ) -> None:
        self._address = find_address(url, api_key)
        self._timeout = _positive_seconds(timeout, "timeout")
        self._connect_timeout = _positive_seconds(connect_timeout, "connect_timeout")
        self._max_concurrency = _count(max_concurrency, "max_concurrency")
        self._retries = retries or Retries()
        self._known = KnownLimits()
        self._server = Availability()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address.url!r}, timeout={self._timeout:g})"

    def __getstate__(self) -> dict[str, object]:
        # What answers here may be another machine elsewhere: 127.0.0.1 is everyone's own.
        own = {"_connections", "_server"}
        return {name: value for name, value in vars(self).items() if name not in own}

    @property
    def url(self) -> str:
        """The server's URL, without secrets."""
        return self._address.url

    @property
    def has_answered(self) -> bool:
        """Whether an ALaRM server has ever answered this client, be it with a refusal.

        Replies of gateways and of other servers do not count. A forked copy knows what its parent
        knew, one that is unpickled begins anew.
        """
        return self._server.has_answered

    def _call(self, timeout: float | None) -> Call:
        return start_call(
            self.url,
            self._timeout if timeout is None else _seconds(timeout, "timeout"),
            self._retries,
            connect_timeout=self._connect_timeout,
            server=self._server,
        )


def _positive_seconds(value: float, name: str) -> float:
    seconds = _seconds(value, name)
    if seconds <= 0:
        raise ValueError(f"{name} must be over 0 seconds, got {value!r}")
    return seconds


def _seconds(value: float, name: str) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be seconds, got {type(value).__name__}") from None
    if not seconds <= _LONGEST_SECONDS:  # NaN included
        raise ValueError(f"{name} must be seconds of at most {_LONGEST_SECONDS:g}, got {value!r}")
    return seconds


def _count(value: SupportsIndex, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number
