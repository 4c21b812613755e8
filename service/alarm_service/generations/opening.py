"""Models without a device made ready, with patience for servers that are not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from itertools import count

import structlog

from alarm_models.errors import UnreachableError
from alarm_models.rewards import DirectModel, Model

__all__ = ["Awaits", "open_models"]

_log = structlog.get_logger()

_FIRST_S, _LONGEST_S = 0.5, 15.0

#: Is told whom a start waits for, and None when it no longer does.
Awaits = Callable[[str | None], None]


async def open_models(models: Iterable[Model], awaits: Awaits | None) -> None:
    """Open models one after another; raise `CheckpointError`.

    With ``awaits`` a server that is away is waited for, as long as it takes: machines of a cluster
    start in any order. Without, it is an error.
    """
    for model in models:
        if isinstance(model, DirectModel):
            await _open(model, awaits)


async def _open(model: DirectModel, awaits: Awaits | None) -> None:
    for attempt in count():
        try:
            await model.open()
        except UnreachableError as error:
            if awaits is None:
                raise
            awaits(str(error))
            _log.warning("a server is away; trying again", error=str(error))
            await asyncio.sleep(min(_FIRST_S * 2.0 ** min(attempt, 9), _LONGEST_S))
        else:
            if awaits is not None:
                awaits(None)
            return
