"""The servers of one remote model: turns, health, failover and retries."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from alarm_models.backoff import backoff_s
from alarm_models.errors import CheckpointError
from alarm_models.recipe.specs import RemoteSpec
from alarm_models.reward_models.remote.http import RemoteClient, RequestFailed

__all__ = ["Server", "Servers"]

LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Server:
    """One server: its client, whether it was identified, and when it is due after failures."""

    def __init__(self, url: str, spec: RemoteSpec) -> None:
        self.client = RemoteClient(url, spec)
        self.is_identified = False
        self.num_failures = 0
        self.due = 0.0

    def failed(self, failure: RequestFailed) -> None:
        """Skip the server until a backoff has passed, which doubles with each failure."""
        if self.num_failures == 0:
            LOG.warning("%s is skipped for now: %s", self.client.url, failure)
        self.postpone(failure)
        self.num_failures += 1
        # It may have been restarted with another model.
        self.is_identified &= failure.status is not None

    def postpone(self, failure: RequestFailed | None = None) -> None:
        """Skip the server for as long as its failures call for."""
        headers = None if failure is None else failure.headers
        self.due = time.monotonic() + backoff_s(self.num_failures, headers)

    def answered(self) -> None:
        """End the skipping of the server."""
        if self.num_failures:
            LOG.warning("%s is used again", self.client.url)
        self.num_failures = 0


#: Returns what determines a server's scores; raises `RequestFailed` or `CheckpointError`.
Identify = Callable[[RemoteClient], Awaitable[str]]


class Servers:
    """Servers with the same model, which take requests in turn.

    A request goes to the next server after a failure of one. A server that failed is skipped until
    a backoff has passed, unless all have failed. One that gave no answer, or none at the start, is
    identified again before it gets a request.
    """

    def __init__(self, spec: RemoteSpec, identify: Identify) -> None:
        self._spec = spec
        self._identify = identify
        self._servers = [Server(url, spec) for url in spec.urls]
        self._turn = 0
        self.identity = ""

    async def open(self) -> None:
        """Identify the servers; one that is unavailable is identified when it is first used.

        Raises `RequestFailed` if none is available, and `CheckpointError` if they differ.
        """
        found = await self._retried(self._identities)
        self.identity = found[0][1]
        for server, identity in found:
            server.is_identified = True
            if identity != self.identity:
                raise CheckpointError(_disagreement(server.client.url, identity, self.identity))

    async def close(self) -> None:
        """Close the connections."""
        for server in self._servers:
            await server.client.close()

    async def request(
        self, method: str, path: str, body: object, read: Callable[[Any], Awaitable[T]]
    ) -> T:
        """Return what ``read`` makes of the response.

        Raises `RequestFailed`, and what ``read`` raises.
        """

        async def from_any() -> T:
            return await self._from_any(method, path, body, read)

        return await self._retried(from_any)

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        num_retries = 0
        while True:
            try:
                return await attempt()
            except RequestFailed as failed:
                if not failed.is_passing or num_retries >= self._spec.max_retries:
                    raise
                wait_s = backoff_s(num_retries, failed.headers)
            await asyncio.sleep(wait_s)
            num_retries += 1

    async def _identities(self) -> list[tuple[Server, str]]:
        """Return the servers that are available, with their identities."""
        asked = [self._identify(server.client) for server in self._servers]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        found: list[tuple[Server, str]] = []
        failures: list[RequestFailed] = []
        for server, answer in zip(self._servers, answers, strict=True):
            if isinstance(answer, str):
                found.append((server, answer))
            elif isinstance(answer, RequestFailed) and answer.is_passing:
                failures.append(answer)
                server.failed(answer)
            else:
                raise answer
        if not found:
            raise self._failure(failures)
        return found

    async def _from_any(
        self, method: str, path: str, body: object, read: Callable[[Any], Awaitable[T]]
    ) -> T:
        failures: list[RequestFailed] = []
        for server in self._in_turn():
            try:
                await self._require_same(server)
                answer = await read(await server.client.attempt(method, path, body))
            except RequestFailed as failed:
                if not failed.is_of_server:
                    raise
                if failed.is_outage:
                    server.failed(failed)
                failures.append(failed)
            else:
                server.answered()
                return answer
        raise self._failure(failures)

    def _in_turn(self) -> list[Server]:
        """Return the servers to try: those that are due in turn, then the others."""
        now = time.monotonic()
        start = self._turn % len(self._servers)
        self._turn += 1
        turns = self._servers[start:] + self._servers[:start]
        due = [server for server in turns if server.num_failures == 0 or server.due <= now]
        if due and due[0].num_failures:
            due[0].postpone()  # so that one request finds out whether it is back, not all
        others = [server for server in turns if server not in due]
        return due + sorted(others, key=lambda server: server.due)

    async def _require_same(self, server: Server) -> None:
        if server.is_identified:
            return
        try:
            identity = await self._identify(server.client)
        except CheckpointError as error:
            raise RequestFailed(str(error), is_passing=False, is_of_server=True) from error
        if identity != self.identity:
            message = self._change(server.client.url, identity)
            raise RequestFailed(message, is_passing=False, is_of_server=True)
        server.is_identified = True

    def _change(self, url: str, identity: str) -> str:
        if len(self._servers) > 1:
            return _disagreement(url, identity, self.identity)
        return (
            f"{url} serves {identity or 'a model that it does not name'} since it was away, and "
            f"{self.identity or 'one that it did not name'} before: reload the recipe"
        )

    def _failure(self, failures: Sequence[RequestFailed]) -> RequestFailed:
        """Return the failure of all servers: one that may pass, if there is such a one."""
        told = next((one for one in failures if one.is_passing), failures[0])
        if len(self._servers) == 1:
            return told
        message = f"none of {len(self._servers)} servers gave scores; {told}"
        return RequestFailed(
            message, told.status, told.headers, is_passing=told.is_passing, is_of_server=True
        )


def _disagreement(url: str, identity: str, expected: str) -> str:
    return (
        f"{url} serves {identity or 'a model that it does not name'}, the other servers "
        f"{expected or 'one that they do not name'}: all servers of `url` must serve the same model"
    )
