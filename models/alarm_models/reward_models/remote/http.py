"""JSON requests to another server, a few at a time, retried with backoff."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from alarm_models.backoff import backoff_s
from alarm_models.recipe.specs import EndpointSpec, RemoteSpec
from alarm_models.reward_models.remote.connections import (
    NoAnswer,
    ask_async,
    excerpt,
    open_async_client,
    parsed,
)

__all__ = ["RemoteClient", "RequestFailed", "is_retryable"]

#: Transient statuses; a server that lost one batch responds with 500.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_retryable(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in _PASSING


class RequestFailed(Exception):
    """A request without a usable response; ``status`` is None if there was none."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RemoteClient:
    """A client of one server, for one event loop; raises `AddressError`.

    ``places`` limits concurrent requests instead of the spec, for clients that share a limit.
    """

    def __init__(
        self, spec: RemoteSpec | EndpointSpec, places: asyncio.Semaphore | None = None
    ) -> None:
        self._spec = spec
        self._places = places or asyncio.Semaphore(spec.max_concurrent)
        self._key = None if spec.api_key is None else spec.api_key.get_secret_value()
        self._base = spec.url.rstrip("/").removesuffix("/v1")
        self._client = open_async_client(
            self._base, self._key, limits=httpx.Limits(max_connections=spec.max_concurrent)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        admit: Callable[[], Awaitable[None]] | None = None,
    ) -> Any:
        """Return the JSON of the response; raise `RequestFailed`.

        ``admit`` is awaited before each attempt; what it raises is passed on.
        """
        attempt = 0
        while True:
            headers: Mapping[str, str] = {}
            if admit is not None:
                await admit()
            try:
                async with self._places:
                    response = await ask_async(
                        self._client,
                        method,
                        f"{self._base}{path}",
                        timeout_s=self._spec.timeout_s,
                        max_bytes=self._spec.max_answer_bytes,
                        json=body,
                    )
                if response.is_success:
                    return parsed(response, self._key)
                failed = RequestFailed(
                    f"{self._name} answered {response.status_code}: "
                    f"{excerpt(response.text, self._key)}",
                    response.status_code,
                )
                headers = response.headers
                if not is_retryable(response.status_code):
                    raise failed
            except NoAnswer as error:
                if error.is_of_no_use:
                    raise RequestFailed(f"{self._name} {error}", httpx.codes.OK) from error
                failed = RequestFailed(f"{self._name} {error}")
            if attempt >= self._spec.max_retries:
                raise failed
            await asyncio.sleep(backoff_s(attempt, headers))
            attempt += 1

    @property
    def _name(self) -> str:
        return f"{self._spec.api} at {urlsplit(self._base).hostname}"
