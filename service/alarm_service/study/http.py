"""Asking a server with patience: what is busy or falters is asked again, what refuses is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

import httpx

from alarm_models.keys import usable_key
from alarm_models.remote.client import (
    NoAnswer,
    ask_async,
    excerpt,
    open_async_client,
    parsed,
    without_password,
)
from alarm_models.remote.retries import delay_s, is_worth_retrying
from alarm_models.specs.base import require_address
from alarm_service.study.errors import StudyError

__all__ = ["Peer", "Refused", "key_for_header", "require_url"]

_MAX_ATTEMPTS = 6

#: A server that runs may answer with thousands of samples' segments.
_MAX_ANSWER_BYTES = 256 << 20


class Refused(StudyError):
    """The server will not do what it was asked, however often; ``status`` is its answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Peer:
    """A server that is asked, from one event loop; raises `AddressError`.

    ``transport`` takes the network's place in tests.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        timeout_s: float,
        num_connections: int,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._key = key
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=num_connections)
        self._client = open_async_client(url, key, limits=limits, transport=transport)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def post(self, url: str, body: object) -> Any:
        """Post JSON and return the answer's; raise `Refused`, or `StudyError` where none comes."""
        shown = without_password(url)
        for attempt in range(_MAX_ATTEMPTS):
            headers: Mapping[str, str] = {}
            try:
                answer = await ask_async(
                    self._client,
                    "POST",
                    url,
                    timeout_s=self._timeout_s,
                    max_bytes=_MAX_ANSWER_BYTES,
                    json=body,
                )
                if answer.is_success:
                    return parsed(answer, self._key)
            except NoAnswer as error:
                fault = f"{shown} {error}"
                if error.is_of_no_use:
                    raise StudyError(fault) from error
            else:
                said = excerpt(answer.text, self._key)
                fault = f"{shown} answers {answer.status_code}: {said}"
                if not is_worth_retrying(answer.status_code):
                    raise Refused(fault, answer.status_code)
                headers = answer.headers
            if attempt + 1 < _MAX_ATTEMPTS:
                await asyncio.sleep(delay_s(attempt, headers, random.random()))
        raise StudyError(f"{fault} (asked {_MAX_ATTEMPTS} times)")


def key_for_header(key: str | None, name: str) -> str | None:
    """Return a key as it is sent; raise `StudyError`, which says ``name`` and not the key."""
    try:
        return None if key is None else usable_key(key)
    except ValueError as error:
        raise StudyError(f"{name}: {error}") from error


def require_url(url: str, flag: str) -> str:
    """Return a server's URL, without a slash at its end; raise `StudyError` where it is none."""
    if not url.startswith(("http://", "https://")):
        raise StudyError(f"{flag} wants a URL such as http://HOST:8000, not {excerpt(url)!r}")
    try:
        return require_address(url).rstrip("/")
    except ValueError as error:
        raise StudyError(f"{flag}: {error}") from error
