"""What both clients hold: where to call, how long and how patiently."""

from __future__ import annotations

from alarm_client.address import find_address
from alarm_client.calls import KnownLimits
from alarm_client.exchange import Call, start_call
from alarm_client.retries import Retries


class Caller:
    """What both clients hold, and all that a pickled one carries: no connection is among it."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        timeout: float,
        max_concurrency: int,
        retries: Retries | None,
    ) -> None:
        if timeout <= 0 or max_concurrency < 1:
            raise ValueError(
                f"timeout must be over 0 and max_concurrency at least 1, "
                f"got {timeout} and {max_concurrency}"
            )
        self._address = find_address(url, api_key)
        self._timeout = timeout
        self._max_concurrency = max_concurrency
        self._retries = retries or Retries()
        self._known = KnownLimits()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address.url!r}, timeout={self._timeout:g})"

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_connections"}

    @property
    def url(self) -> str:
        """The server's URL, without secrets."""
        return self._address.url

    def _call(self, timeout: float | None) -> Call:
        return start_call(self.url, self._timeout if timeout is None else timeout, self._retries)
