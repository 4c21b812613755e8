"""The client for asyncio callers: calls driven on the running loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from alarm_client.actions import Steps
from alarm_client.caller import Caller
from alarm_client.calls import await_ready, fetch_catalogue, run_job
from alarm_client.outages import Availability
from alarm_client.retries import Retries
from alarm_client.types import (
    Aspects,
    Catalogue,
    Overrides,
    RewardResult,
    SampleLike,
    ScoreResult,
)
from alarm_client.wire import reward_job, score_job

if TYPE_CHECKING:
    import httpx

    from alarm_client.connections import AsyncConnections

# httpx and asyncio load when a client is made: importing the package costs next to nothing.

T = TypeVar("T")


class AsyncAlarmClient(Caller):
    """Scores and hierarchical rewards from a server, for asyncio callers.

    As AlarmClient; each event loop gets its own connections, which close when the loop shuts down.
    """

    def __init__(
        self,
        url: str | None = None,
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
        self._connections = self._connect()

    async def score(
        self,
        samples: Sequence[SampleLike],
        model: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ScoreResult:
        """The raw scores of one model, the default recipe's holistic one unless named."""
        call = self._call(timeout)
        return await self._drive(run_job(call, score_job(samples, model), self._known))

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
        call = self._call(timeout)
        job = reward_job(samples, recipe, overrides, aspects)
        return await self._drive(run_job(call, job, self._known))

    async def models(self, *, timeout: float | None = None) -> Catalogue:
        """The server's models, recipes and limits."""
        return await self._drive(fetch_catalogue(self._call(timeout)))

    async def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when every model is ready; past `timeout` raise the server's own reason."""
        await self._drive(await_ready(self._call(timeout)))

    async def aclose(self) -> None:
        """Close the running loop's connections; the next call opens new ones."""
        await self._connections.aclose()

    async def __aenter__(self) -> AsyncAlarmClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._server = Availability()
        self._connections = self._connect()

    def _connect(self) -> AsyncConnections:
        from alarm_client.connections import AsyncConnections

        return AsyncConnections(self._address, self._transport)

    async def _drive(self, steps: Steps[T]) -> T:
        from alarm_client.drivers import drive_async

        return await drive_async(steps, self._connections.send, self._max_concurrency)
