"""Log lines that any client can cause, limited to one a second with a count."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RepeatedLog"]


@dataclass(slots=True)
class _Window:
    """The events of one kind that were not written since its last line."""

    write: Callable[..., object] = lambda *_, **__: None
    event: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    num: int = 0
    routes: Counter[str] = field(default_factory=Counter)


class RepeatedLog:
    """Writes the first line of a kind at once, then at most one in each period.

    A later line has the number of events as ``count``, and the fields of the last one; ``routes``
    counts events by their ``route``, if they have one. For use on the event loop.
    """

    def __init__(self, period_s: float = 1.0) -> None:
        self._period_s = period_s
        self._windows: dict[Hashable, _Window] = {}

    def write(
        self, kind: Hashable, write: Callable[..., object], event: str, **fields: Any
    ) -> None:
        """Write an event with ``write``, or count it."""
        window = self._windows.get(kind)
        if window is None:
            write(event, **fields)
            self._windows[kind] = _Window()
            asyncio.get_running_loop().call_later(self._period_s, self._end_period, kind)
            return
        window.write, window.event, window.fields = write, event, fields
        window.num += 1
        if "route" in fields:
            window.routes[fields["route"]] += 1

    def _end_period(self, kind: Hashable) -> None:
        window = self._windows.pop(kind)
        if not window.num:
            return
        fields = window.fields | ({"routes": dict(window.routes)} if window.routes else {})
        window.write(window.event, **fields, count=window.num)
        self._windows[kind] = _Window()
        asyncio.get_running_loop().call_later(self._period_s, self._end_period, kind)
