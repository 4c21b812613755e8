"""JSON to another server and back: a few requests at a time, tried again where that may help."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx

from alarm_models.remote.retries import delay_s, is_worth_retrying
from alarm_models.specs import RemoteSpec

__all__ = ["Exchange", "Failed"]


class Failed(Exception):
    """A request that got no answer to use; ``status`` is None where none came at all."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """One server, for as long as it is talked to from one event loop."""

    def __init__(self, spec: RemoteSpec) -> None:
        self._spec = spec
        self._places = asyncio.Semaphore(spec.max_concurrent)
        key = spec.api_key
        self._client = httpx.AsyncClient(
            base_url=spec.url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx.Timeout(spec.timeout_s, pool=None),
            limits=httpx.Limits(max_connections=spec.max_concurrent),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON that a request is answered with; raise `Failed`."""
        attempt = 0
        while True:
            headers: httpx.Headers | None = None
            try:
                async with self._places:
                    response = await self._client.request(method, path, json=body)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                failed = Failed(f"{self._name} cannot be reached: {error!r}")
            else:
                if response.is_success:
                    return _json(response, self._name)
                failed = Failed(
                    f"{self._name} answered {response.status_code}: {response.text[:200]}",
                    response.status_code,
                )
                headers = response.headers
                if not is_worth_retrying(response.status_code):
                    raise failed
            if attempt >= self._spec.max_retries:
                raise failed
            await asyncio.sleep(delay_s(attempt, headers or {}, random.random()))
            attempt += 1

    @property
    def _name(self) -> str:
        return f"{self._spec.api} at {self._client.base_url.host}"


def _json(response: httpx.Response, name: str) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise Failed(f"{name} answered no JSON: {response.text[:200]}") from error
