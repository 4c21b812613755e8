"""AlarmClient, AsyncAlarmClient and their common base."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

from alarm_client._address import find_addresses
from alarm_client._operations import (
    CachedLimits,
    await_ready,
    fetch_catalogue,
    post_admin,
    run_payload,
)
from alarm_client._payloads import reward_payload, score_payload
from alarm_client._retry import (
    Availability,
    Call,
    Flow,
    Host,
    Reply,
    Retries,
    Send,
    start_call,
)
from alarm_client.types import Aspects, Catalogue, Overrides, RewardResult, SampleLike, ScoreResult

# httpx and asyncio are imported when a client is created, so that importing the package is fast.
if TYPE_CHECKING:
    import httpx

    from alarm_client._transport import AsyncConnections, Connections

T = TypeVar("T")

# The largest timeout that clocks and sockets accept without overflow.
_LONGEST_SECONDS = 1e8


class BaseClient:
    """Configuration and calls (as flows) shared by both clients; subclasses add the connections."""

    def __init__(
        self,
        url: str | Sequence[str] | None,
        api_key: str | None,
        timeout: float,
        connect_timeout: float,
        max_concurrency: int,
        retries: Retries | None,
    ) -> None:
        self._addresses = find_addresses(url, api_key)
        self._timeout = _positive_seconds(timeout, "timeout")
        self._connect_timeout = _positive_seconds(connect_timeout, "connect_timeout")
        self._max_concurrency = _count(max_concurrency, "max_concurrency")
        self._retries = retries or Retries()
        self._known = CachedLimits()
        self._find_hosts()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, timeout={self._timeout:g})"

    def __getstate__(self) -> dict[str, object]:
        # On another machine the same URL may reach another server, as 127.0.0.1 does.
        own = {"_connections", "_hosts", "_turns"}
        return {name: value for name, value in vars(self).items() if name not in own}

    @property
    def url(self) -> str:
        """The server's URL, without secrets; of several, with commas between them."""
        return ",".join(address.url for address in self._addresses)

    @property
    def has_answered(self) -> bool:
        """Whether an ALaRM server has ever answered this client, even with an error.

        Responses of gateways and of other servers do not count. A fork inherits the value;
        unpickling resets it.
        """
        return any(host.server.has_answered for host in self._hosts)

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._find_hosts()
        self._open()

    def _find_hosts(self) -> None:
        """Know nothing of the servers; begin their turns anywhere, so that clients differ."""
        addresses = enumerate(self._addresses)
        self._hosts = [Host(one.url, Availability(), index) for index, one in addresses]
        self._turns = count(os.getpid())

    def _open(self) -> None:
        """Create the connections of a new or an unpickled client."""
        raise NotImplementedError

    def _score(
        self, samples: Sequence[SampleLike], model: str | None, timeout: float | None
    ) -> Flow[ScoreResult]:
        call = self._call(timeout)
        return run_payload(call, score_payload(samples, model), self._known)

    def _hierarchical_reward(
        self,
        samples: Sequence[SampleLike],
        recipe: str | None,
        overrides: Overrides | None,
        aspects: Aspects,
        timeout: float | None,
    ) -> Flow[RewardResult]:
        call = self._call(timeout)
        payload = reward_payload(samples, recipe, overrides, aspects)
        return run_payload(call, payload, self._known)

    def _models(self, timeout: float | None) -> Flow[Catalogue]:
        return fetch_catalogue(self._call(timeout))

    def _wait_ready(self, timeout: float) -> Flow[None]:
        return await_ready(self._call(timeout))

    def _admin(self, change: str, timeout: float | None) -> Flow[None]:
        return post_admin(self._call(timeout), f"/admin/{change}")

    def _call(self, timeout: float | None) -> Call:
        return start_call(
            self._hosts,
            self._timeout if timeout is None else _seconds(timeout, "timeout"),
            self._retries,
            connect_timeout=self._connect_timeout,
            turns=self._turns,
        )


def _positive_seconds(value: float, name: str) -> float:
    seconds = _seconds(value, name)
    if seconds <= 0:
        raise ValueError(f"{name} must be more than 0 seconds, got {value!r}")
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
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


class AlarmClient(BaseClient):
    """Scores and hierarchical rewards from a server, for blocking callers.

    `url` and `api_key` default to `ALARM_URL` and `ALARM_API_KEY`. `url` may be several, as a list
    or with commas between them: calls go to the servers in turn, retries to the next one that is
    available, and samples with `group_size` to the first. `timeout`: seconds per call, retries
    included; until a server has answered, connection errors fail a call after
    `connect_timeout` seconds. `max_concurrency` bounds the concurrent requests of a large call that
    is split. Safe to share between threads, to pickle and to fork; `transport`: an httpx transport
    that replaces the network.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 60.0,
        max_concurrency: int = 8,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout, connect_timeout, max_concurrency, retries)
        self._transport = transport
        self._open()

    def score(
        self,
        samples: Sequence[SampleLike],
        model: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ScoreResult:
        """The raw scores of one model, the default recipe's holistic one unless named."""
        return self._run(self._score(samples, model, timeout))

    def hierarchical_reward(
        self,
        samples: Sequence[SampleLike],
        recipe: str | None = None,
        overrides: Overrides | None = None,
        aspects: Aspects = "admitted",
        *,
        timeout: float | None = None,
    ) -> RewardResult:
        """The rewards of a recipe, the server's default one unless named."""
        flow = self._hierarchical_reward(samples, recipe, overrides, aspects, timeout)
        return self._run(flow)

    def models(self, *, timeout: float | None = None) -> Catalogue:
        """The server's models, recipes and limits."""
        return self._run(self._models(timeout))

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when every model is ready; past `timeout` raise the server's own reason."""
        self._run(self._wait_ready(timeout))

    def sleep(self, *, timeout: float | None = None) -> None:
        """Have the server release its models and their memory; it refuses requests until `wake`.

        Returns once running requests have ended. `api_key` must be one of the server's admin keys.
        """
        self._run(self._admin("sleep", timeout))

    def wake(self, *, timeout: float | None = None) -> None:
        """Have a sleeping server load its models again; return when it is ready."""
        self._run(self._admin("wake", timeout))

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        for connections in self._connections:
            connections.close()

    def __enter__(self) -> AlarmClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        from alarm_client._transport import Connections

        self._connections: list[Connections] = [
            Connections(address, self._transport) for address in self._addresses
        ]

    def _run(self, flow: Flow[T]) -> T:
        from alarm_client._runners import run_flow

        return run_flow(flow, self._send, self._max_concurrency)

    def _send(self, action: Send) -> Reply:
        return self._connections[action.host].send(action)


class AsyncAlarmClient(BaseClient):
    """Scores and hierarchical rewards from a server, for asyncio callers.

    Like AlarmClient; each event loop has its own connections, closed when the loop shuts down.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 60.0,
        max_concurrency: int = 8,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout, connect_timeout, max_concurrency, retries)
        self._transport = transport
        self._open()

    async def score(
        self,
        samples: Sequence[SampleLike],
        model: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ScoreResult:
        """The raw scores of one model, the default recipe's holistic one unless named."""
        return await self._run(self._score(samples, model, timeout))

    async def hierarchical_reward(
        self,
        samples: Sequence[SampleLike],
        recipe: str | None = None,
        overrides: Overrides | None = None,
        aspects: Aspects = "admitted",
        *,
        timeout: float | None = None,
    ) -> RewardResult:
        """The rewards of a recipe, the server's default one unless named."""
        flow = self._hierarchical_reward(samples, recipe, overrides, aspects, timeout)
        return await self._run(flow)

    async def models(self, *, timeout: float | None = None) -> Catalogue:
        """The server's models, recipes and limits."""
        return await self._run(self._models(timeout))

    async def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when every model is ready; past `timeout` raise the server's own reason."""
        await self._run(self._wait_ready(timeout))

    async def sleep(self, *, timeout: float | None = None) -> None:
        """Have the server release its models and their memory; it refuses requests until `wake`.

        Returns once running requests have ended. `api_key` must be one of the server's admin keys.
        """
        await self._run(self._admin("sleep", timeout))

    async def wake(self, *, timeout: float | None = None) -> None:
        """Have a sleeping server load its models again; return when it is ready."""
        await self._run(self._admin("wake", timeout))

    async def aclose(self) -> None:
        """Close the running loop's connections; the next call opens new ones."""
        for connections in self._connections:
            await connections.aclose()

    async def __aenter__(self) -> AsyncAlarmClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _open(self) -> None:
        from alarm_client._transport import AsyncConnections

        self._connections: list[AsyncConnections] = [
            AsyncConnections(address, self._transport) for address in self._addresses
        ]

    async def _run(self, flow: Flow[T]) -> T:
        from alarm_client._runners import run_flow_async

        return await run_flow_async(flow, self._send, self._max_concurrency)

    async def _send(self, action: Send) -> Reply:
        return await self._connections[action.host].send(action)
