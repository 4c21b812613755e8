"""Dependencies of the routes: engine, settings, caller, deadline, and documented errors."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request
from pydantic.json_schema import SkipJsonSchema

from alarm_service.engine.engine import RewardEngine
from alarm_service.errors import ClientDisconnected, DeadlinePassed
from alarm_service.schemas import ErrorOut
from alarm_service.settings import Settings

__all__ = [
    "WORK_ERRORS",
    "EngineOf",
    "SettingsOf",
    "TimeoutMs",
    "documented",
    "engine_of",
    "run_until_disconnect",
    "settings_of",
    "timeout_s",
]


def documented(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    """Describe the error statuses of a route for the OpenAPI document."""
    return {status: {"model": ErrorOut, "description": why} for status, why in statuses}


# The scoring routes call these two: FastAPI would solve a dependency on each request.


def engine_of(request: Request) -> RewardEngine:
    """Return the engine of a request's server."""
    engine: RewardEngine = request.app.state.engine
    return engine


def settings_of(request: Request) -> Settings:
    """Return the settings of a request's server."""
    settings: Settings = request.app.state.settings
    return settings


# Coroutines, although they await nothing: FastAPI would run plain functions in threads.


async def _engine(request: Request) -> RewardEngine:
    return engine_of(request)


async def _settings(request: Request) -> Settings:
    return settings_of(request)


EngineOf = Annotated[RewardEngine, Depends(_engine)]
SettingsOf = Annotated[Settings, Depends(_settings)]
TimeoutMs = Annotated[
    int | SkipJsonSchema[None],
    Header(alias="X-Request-Timeout-Ms", ge=1, le=1 << 40, description="the caller's deadline"),
]

#: The errors of every route that does work.
WORK_ERRORS = documented(
    (400, "the body is not JSON, or does not match its Content-Digest"),
    (401, "no key, or a wrong one"),
    (404, "no such model or recipe"),
    (408, "the body did not arrive in time"),
    (413, "the body or the number of samples is over the limit"),
    (422, "the request does not fit the schema"),
    (429, "the queue is full; `Retry-After` says when to retry"),
    (503, "the server is broken or stopping"),
    (504, "the deadline passed"),
)


def timeout_s(timeout_ms: int | None, settings: Settings) -> float:
    """Return the deadline in seconds: the caller's, else the server's."""
    return settings.timeout_s if timeout_ms is None else timeout_ms / 1000


_T = TypeVar("_T")


async def run_until_disconnect(
    request: Request, work: Coroutine[Any, Any, _T], timeout_s: float
) -> _T:
    """Run the work until it is done, the deadline passes or the client disconnects.

    Raises `DeadlinePassed` or `ClientDisconnected`; in both cases the work is cancelled first.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait(
            (task, disconnect), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if task.done():
            return task.result()
        if disconnect.done():
            raise ClientDisconnected
        raise DeadlinePassed(f"no result within {timeout_s:g} s; retry, or allow more time")
    finally:
        disconnect.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, disconnect, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
