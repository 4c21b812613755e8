"""An HTTP client with any number of requests in flight."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import aiohttp

__all__ = ["Post", "client", "latencies"]


class Post(Protocol):
    """Sends all bodies at once, one request each; returns the responses in order."""

    def __call__(self, url: str, bodies: Sequence[Any]) -> list[Any]:
        """Raise `RuntimeError` for any status other than 200."""


@contextmanager
def client() -> Iterator[Post]:
    """Yield a post function; connections stay open while the context is open."""
    with asyncio.Runner() as runner:
        session = runner.run(_session())

        def post(url: str, bodies: Sequence[Any]) -> list[Any]:
            return runner.run(_post_all(session, url, bodies))

        try:
            yield post
        finally:
            runner.run(session.close())


def latencies(url: str, bodies: Sequence[Any], connections: int) -> list[float]:
    """Send one request after another on each of a number of connections; return their seconds.

    Raises `RuntimeError` for any status other than 200.
    """
    return asyncio.run(_latencies(url, bodies, connections))


async def _latencies(url: str, bodies: Sequence[Any], connections: int) -> list[float]:
    waiting = iter(bodies)
    seconds: list[float] = []

    async def connection(session: aiohttp.ClientSession) -> None:
        for body in waiting:  # shared by all connections
            started = time.perf_counter()
            await _post(session, url, body)
            seconds.append(time.perf_counter() - started)

    async with await _session() as session:
        await asyncio.gather(*(connection(session) for _ in range(connections)))
    return seconds


async def _session() -> aiohttp.ClientSession:
    # Without this, aiohttp is limited to 100 connections.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    )


async def _post_all(session: aiohttp.ClientSession, url: str, bodies: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*(_post(session, url, body) for body in bodies))


async def _post(session: aiohttp.ClientSession, url: str, body: Any) -> Any:
    headers = {"Content-Type": "application/json"}
    async with session.post(url, data=json.dumps(body).encode(), headers=headers) as answer:
        content = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {content[:500]!r}")
        return json.loads(content)
