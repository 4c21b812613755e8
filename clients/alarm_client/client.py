"""The client for blocking callers: calls driven with threads."""

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

    from alarm_client.connections import Connections

# httpx and asyncio load when a client is made: importing the package costs next to nothing.

T = TypeVar("T")


class AlarmClient(Caller):
    """Scores and hierarchical rewards from a server, for blocking callers.

    `url` and `api_key` default to `ALARM_URL` and `ALARM_API_KEY`. `timeout` is the time of one
    call in seconds, retries included; while no server has ever answered there, connection errors
    end a call after `connect_timeout` seconds. `max_concurrency` bounds the requests that one large
    call is split into. Safe to share between threads, to pickle and to fork; `transport` (httpx's)
    stands in for the network.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(url, api_key, timeout, connect_timeout, max_concurrency, retries)
        self._transport = transport
        self._connections = self._connect()

    def score(
        self,
        samples: Sequence[SampleLike],
        model: str | None = None,
        *,
        timeout: float | None = None,
    ) -> ScoreResult:
        """The raw scores of one model, the default recipe's holistic one unless named."""
        call = self._call(timeout)
        return self._drive(run_job(call, score_job(samples, model), self._known))

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
        call = self._call(timeout)
        job = reward_job(samples, recipe, overrides, aspects)
        return self._drive(run_job(call, job, self._known))

    def models(self, *, timeout: float | None = None) -> Catalogue:
        """The server's models, recipes and limits."""
        return self._drive(fetch_catalogue(self._call(timeout)))

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when every model is ready; past `timeout` raise the server's own reason."""
        self._drive(await_ready(self._call(timeout)))

    def close(self) -> None:
        """Close this process's connections; the next call opens new ones."""
        self._connections.close()

    def __enter__(self) -> AlarmClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._server = Availability()
        self._connections = self._connect()

    def _connect(self) -> Connections:
        from alarm_client.connections import Connections

        return Connections(self._address, self._transport)

    def _drive(self, steps: Steps[T]) -> T:
        from alarm_client.drivers import drive

        return drive(steps, self._connections.send, self._max_concurrency)
