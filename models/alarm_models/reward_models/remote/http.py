"""JSON requests to one other server, a few at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from alarm_models.backoff import backoff_s
from alarm_models.errors import printable, printable_json
from alarm_models.recipe.specs import EndpointSpec, RemoteSpec
from alarm_models.reward_models.remote.connections import (
    NoAnswer,
    ask_async,
    excerpt,
    open_async_client,
    parsed,
    without_password,
)
from alarm_models.types import EndpointFailure

__all__ = [
    "UNAVAILABLE",
    "UNEXPECTED_FORMAT",
    "RemoteClient",
    "RequestFailed",
    "endpoint_failure",
    "format_problem",
    "is_retryable",
    "json_excerpt",
]

#: Errors from reading a response of another format.
UNEXPECTED_FORMAT = (
    ArithmeticError, AttributeError, LookupError, RecursionError, StopIteration, TypeError,
    ValueError,
)  # fmt: skip

#: Statuses of a server, or a proxy, that is busy, starting or unavailable.
UNAVAILABLE = frozenset({429, 502, 503, 504})

#: Transient statuses besides 5xx; a server that lost one batch responds with 500, a proxy with 52x.
_PASSING = frozenset({408, 425, 429})

#: Statuses of a server that another one may make up for: it has no such model, another key, or no
#: credit.
_OF_SERVER = frozenset({401, 402, 403, 404, 405})

#: Statuses of failures that may be of one request only.
_OF_REQUEST = frozenset({httpx.codes.OK, httpx.codes.INTERNAL_SERVER_ERROR})

#: Characters of a response's JSON of which an excerpt is made.
_MAX_JSON_CHARS = 4096

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def is_retryable(status: int) -> bool:
    """Return whether the same request may succeed later."""
    return status in _PASSING or 500 <= status < 600


def format_problem(error: Exception) -> str:
    """Return that a response has another format and what is wrong, without texts of it."""
    reason = ""
    if isinstance(error, KeyError):
        reason = f" (there is no {printable_json(str(error.args[0]))})"
    elif isinstance(error, ValueError | TypeError):
        reason = f" ({excerpt(str(error).partition(':')[0])})"  # Python quotes values after a colon
    return f"has an unknown format{reason}"


def json_excerpt(answer: object, key: SecretStr | None = None) -> str:
    """Return the start of a response's JSON, without the key that the server may repeat."""
    secret = None if key is None else printable_json(key.get_secret_value())[1:-1]
    return excerpt(printable(_json_start(answer)), secret)


def _json_start(answer: object) -> str:
    text = ""
    try:
        for part in json.JSONEncoder(ensure_ascii=False).iterencode(answer):
            text += part
            if len(text) >= _MAX_JSON_CHARS:
                break
    except RecursionError:
        return "JSON that is nested too deep to show"
    return text[:_MAX_JSON_CHARS]


class RequestFailed(Exception):
    """A request without a usable response; ``status`` is None if there was none.

    ``is_passing``: the same request may succeed later. ``is_of_server``: another server may answer
    it; ``is_outage``: the server would answer no request.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        is_passing: bool | None = None,
        is_of_server: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        passes = status is None or is_retryable(status)
        self.is_passing = passes if is_passing is None else is_passing
        self.is_of_server = (
            self.is_passing or status in _OF_SERVER if is_of_server is None else is_of_server
        )
        self.is_outage = self.is_of_server and status not in _OF_REQUEST


def endpoint_failure(endpoint: str, failed: RequestFailed) -> EndpointFailure:
    """Return what is observed of a failed request.

    The text of a response is quoted only where it is about the server: others may repeat a sample.
    """
    if failed.status == httpx.codes.OK:
        return EndpointFailure(endpoint, "unknown_format")
    is_of_server = failed.status is None or failed.is_outage
    message = str(failed) if is_of_server else f"it answered {failed.status}"
    return EndpointFailure(endpoint, "no_answer", message)


class RemoteClient:
    """A client of one server, for one event loop; raises `AddressError`.

    ``places`` limits concurrent requests instead of the spec, for clients that share a limit.
    """

    def __init__(
        self, url: str, spec: RemoteSpec | EndpointSpec, places: asyncio.Semaphore | None = None
    ) -> None:
        self.url = without_password(url)
        self._spec = spec
        self._places = places or asyncio.Semaphore(spec.max_concurrent)
        self._key = None if spec.api_key is None else spec.api_key.get_secret_value()
        self._base = url.rstrip("/").removesuffix("/v1")
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
        admit: Callable[[RequestFailed | None], Awaitable[None]] | None = None,
    ) -> Any:
        """Return the JSON of the response, after retries; raise `RequestFailed`.

        ``admit`` is awaited before each attempt, with the failure of the one before; what it raises
        is passed on.
        """
        num_retries = 0
        before: RequestFailed | None = None
        while True:
            if admit is not None:
                await admit(before)
            try:
                return await self.attempt(method, path, body)
            except RequestFailed as failed:
                if not failed.is_passing or num_retries >= self._spec.max_retries:
                    raise
                before = failed
                wait_s = backoff_s(num_retries, failed.headers)
            await asyncio.sleep(wait_s)
            num_retries += 1

    async def attempt(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON of the response to one attempt; raise `RequestFailed`."""
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
        except NoAnswer as error:
            message = f"{self.name} {error}"
            if error.is_of_no_use:
                raise RequestFailed(message, httpx.codes.OK, is_of_server=True) from error
            raise RequestFailed(message) from error
        raise RequestFailed(
            f"{self.name} answered {response.status_code}: {excerpt(response.text, self._key)}",
            response.status_code,
            response.headers,
        )

    @property
    def name(self) -> str:
        """The server's API and host, for messages."""
        return f"{self._spec.api} at {urlsplit(self._base).hostname}"
