"""JSON to another server and back: a few requests at a time, tried again where that may help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from alarm_models.remote.client import NoAnswer, ask_async, excerpt, open_async_client, parsed
from alarm_models.remote.retries import delay_s, is_worth_retrying
from alarm_models.specs import RemoteSpec

__all__ = ["Exchange", "Failed"]


class Failed(Exception):
    """A request that got no answer to use; ``status`` is None where none came at all."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Exchange:
    """One server, for as long as it is talked to from one event loop; raises `AddressError`."""

    def __init__(self, spec: RemoteSpec) -> None:
        self._spec = spec
        self._places = asyncio.Semaphore(spec.max_concurrent)
        self._key = None if spec.api_key is None else spec.api_key.get_secret_value()
        self._base = spec.url.rstrip("/").removesuffix("/v1")
        self._client = open_async_client(
            self._base, self._key, limits=httpx.Limits(max_connections=spec.max_concurrent)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON that a request is answered with; raise `Failed`."""
        attempt = 0
        while True:
            headers: Mapping[str, str] = {}
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
                failed = Failed(
                    f"{self._name} answered {response.status_code}: "
                    f"{excerpt(response.text, self._key)}",
                    response.status_code,
                )
                headers = response.headers
                if not is_worth_retrying(response.status_code):
                    raise failed
            except NoAnswer as error:
                if error.is_of_no_use:
                    raise Failed(f"{self._name} {error}", httpx.codes.OK) from error
                failed = Failed(f"{self._name} {error}")
            if attempt >= self._spec.max_retries:
                raise failed
            await asyncio.sleep(delay_s(attempt, headers, random.random()))
            attempt += 1

    @property
    def _name(self) -> str:
        return f"{self._spec.api} at {urlsplit(self._base).hostname}"
