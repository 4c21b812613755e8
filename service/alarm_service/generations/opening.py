"""Models without a device made ready, with patience for servers that are not there yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import count

import structlog

from alarm_models.errors import NoRoomError, UnreachableError
from alarm_models.rewards import DirectModel, Model

__all__ = ["Awaits", "open_models"]

_log = structlog.get_logger()

_FIRST_S, _LONGEST_S = 0.5, 15.0

#: How long a change waits for room on a cluster: nodes that are being added come within it.
_ROOM_S = 120

#: Is told whom a start waits for, and None when it no longer does.
Awaits = Callable[[str | None], None]


async def open_models(models: Iterable[Model], awaits: Awaits | None) -> None:
    """Open models one after another; raise `CheckpointError`.

    With ``awaits`` a server that is away, or a cluster that is full, is waited for, as long as it
    takes: machines of a cluster start in any order. Without, it is an error; a full cluster after a
    while.
    """
    told: set[str] = set()
    for model in models:
        if isinstance(model, DirectModel):
            await _open(model, awaits, told)


async def _open(model: DirectModel, awaits: Awaits | None, told: set[str]) -> None:
    began = time.monotonic()
    for attempt in count():
        try:
            await model.open()
        except UnreachableError as error:
            is_soon = isinstance(error, NoRoomError) and time.monotonic() - began < _ROOM_S
            if awaits is None and not is_soon:
                raise
            if awaits is not None:
                awaits(str(error))
            if str(error) not in told:  # once, rather than at each attempt
                _log.warning("waiting for what a model needs; trying again", error=str(error))
                told.add(str(error))
            await asyncio.sleep(min(_FIRST_S * 2.0 ** min(attempt, 9), _LONGEST_S))
        else:
            if awaits is not None:
                awaits(None)
            return
