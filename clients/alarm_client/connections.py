"""Open connections: one HTTP client a process, and one a process and event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import httpx

from alarm_client.actions import Reply, Send
from alarm_client.address import Address
from alarm_client.messages import (
    headers_of,
    opening_errors,
    own_errors,
    reply_of,
    timeout_of,
)
from alarm_client.transports import open_async_client, open_client


def require_readable(address: Address) -> None:
    """Raise ValueError where httpx cannot read the server's URL."""
    try:
        httpx.URL(address.url)
    except httpx.InvalidURL as error:
        raise ValueError(
            f"the server's url {address.url[:200]!r} cannot be read: {error}"
        ) from None


class Connections:
    """The blocking HTTP clients of one AlarmClient: a forked child opens its own."""

    def __init__(
        self,
        address: Address,
        transport: httpx.BaseTransport | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        require_readable(address)
        self._address = address
        self._transport = transport
        self._now = now
        self._clients: dict[int, httpx.Client] = {}

    def send(self, action: Send) -> Reply:
        """Perform one request within its timeout; the clock is looked at between reads."""
        ends = self._now() + action.timeout
        client = self._client()
        with (
            own_errors(self._address, action),
            client.stream(
                action.method,
                self._address.url + action.path,
                content=action.body,
                headers=headers_of(self._address, action),
                timeout=timeout_of(action),
            ) as response,
        ):
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if self._now() > ends:
                    raise httpx.ReadTimeout("the answer came too slowly")
            return reply_of(response, bytes(body), action)

    def close(self) -> None:
        """Close this process's connections; a parent's are the parent's to close."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> httpx.Client:
        pid = os.getpid()
        client = self._clients.get(pid)
        if client is None:
            with opening_errors(self._address.url):
                fresh = open_client(self._address, self._transport)
            # No lock to be caught by a fork: setdefault lets one of two threads win.
            client = self._clients.setdefault(pid, fresh)
            if client is not fresh:
                fresh.close()
        return client


@dataclass(frozen=True, slots=True)
class _OnLoop:
    """A loop's client. `keeper` is suspended until the loop shuts down, and then closes it."""

    loop: asyncio.AbstractEventLoop
    client: httpx.AsyncClient
    keeper: AsyncGenerator[None, None]


class AsyncConnections:
    """The HTTP clients of one AsyncAlarmClient: each process and each event loop has its own."""

    def __init__(self, address: Address, transport: httpx.AsyncBaseTransport | None) -> None:
        require_readable(address)
        self._address = address
        self._transport = transport
        self._clients: dict[tuple[int, int], _OnLoop] = {}

    async def send(self, action: Send) -> Reply:
        """Perform one request within its timeout."""
        client = await self._client()
        with own_errors(self._address, action):
            request = client.request(
                action.method,
                self._address.url + action.path,
                content=action.body,
                headers=headers_of(self._address, action),
                timeout=timeout_of(action),
            )
            response = await asyncio.wait_for(request, action.timeout)
            return reply_of(response, response.content, action)

    async def aclose(self) -> None:
        """Close the running loop's connections; other loops close theirs as they shut down."""
        entry = self._clients.pop((os.getpid(), id(asyncio.get_running_loop())), None)
        if entry is not None:
            await entry.keeper.aclose()

    async def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        key = (os.getpid(), id(loop))
        entry = self._clients.get(key)
        if entry is None or entry.loop is not loop:
            self._drop_dead()
            with opening_errors(self._address.url):
                client = open_async_client(self._address, self._transport)
            entry = self._clients[key] = _OnLoop(loop, client, _keep(client))
            await entry.keeper.__anext__()
        return entry.client

    def _drop_dead(self) -> None:
        for key, entry in list(self._clients.items()):
            if entry.loop.is_closed():
                self._clients.pop(key, None)


async def _keep(client: httpx.AsyncClient) -> AsyncGenerator[None, None]:
    # A loop closes its suspended generators before itself (asyncio.run and its like see to it).
    try:
        yield
    finally:
        await client.aclose()
