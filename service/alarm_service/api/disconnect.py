"""What is known of the caller while a request runs: a deadline, and whether it still listens."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from alarm_service.errors import DeadlinePassed

__all__ = ["ClientDisconnected", "run_until_disconnect"]

_T = TypeVar("_T")


class ClientDisconnected(Exception):
    """The caller hung up; nobody will read an answer."""


async def run_until_disconnect(
    request: Request, work: Coroutine[Any, Any, _T], timeout_s: float
) -> _T:
    """Run the work until it is done, the deadline passes or the caller hangs up.

    Raises `DeadlinePassed` or `CallerGone`; in both cases the work is cancelled first.
    """
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, hang_up), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if hang_up.done():
            raise ClientDisconnected
        raise DeadlinePassed(f"no result within {timeout_s:g} s; ask again or allow more time")
    finally:
        for one in (task, hang_up):
            one.cancel()
        await asyncio.gather(task, hang_up, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
