"""A request and its reply in httpx's terms: headers, timeouts, errors, and what arrived whole."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from alarm_client.actions import Reply, Send
from alarm_client.address import Address
from alarm_client.digests import content_digest, has_lost_a_digest, is_answer_to, is_intact
from alarm_client.errors import AlarmConnectionError, DeadlineExceeded
from alarm_client.tracing import trace_headers

_CONNECT_SECONDS = 5.0


@contextmanager
def own_errors(url: str, action: Send) -> Iterator[None]:
    """Raise httpx's errors in this block as those of this package, with what to look at."""
    where = f"{url}{action.path}"
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise AlarmConnectionError(
            f"{where}: no connection within {_connect_seconds(action):g} s; is the host right?",
            retryable=True,
        ) from error
    except (httpx.TimeoutException, asyncio.TimeoutError) as error:  # noqa: UP041 (Python 3.10)
        if _is_gone(error):
            raise AlarmConnectionError(
                f"{where}: the machine at the other end says nothing any more", retryable=True
            ) from error
        raise DeadlineExceeded(
            f"{where}: no answer within the {action.timeout:g} s that were left", retryable=True
        ) from error
    except httpx.ConnectError as error:
        raise AlarmConnectionError(
            f"{where}: cannot connect ({error}); is `alarm serve` running at {url}?", retryable=True
        ) from error
    except httpx.RequestError as error:
        raise AlarmConnectionError(
            f"{where}: the connection broke ({type(error).__name__}: {error})", retryable=True
        ) from error


def _is_gone(error: BaseException | None) -> bool:
    """Whether a timeout is the kernel's, whose peer did not answer it, and not our own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ETIMEDOUT:
            return True
        error = error.__cause__ or error.__context__
    return False


def headers_of(address: Address, action: Send) -> dict[str, str]:
    """The request's headers: its own, and in their absence those of every request."""
    headers = {
        "User-Agent": "alarm-client",
        "X-Request-Timeout-Ms": str(max(1, int(action.timeout * 1000))),
        **trace_headers(),
    }
    if action.body is not None:
        headers["Content-Type"] = "application/json"
        headers["Content-Digest"] = content_digest(action.body)
    if address.authorization is not None:
        headers["Authorization"] = address.authorization
    return {**headers, **(action.headers or {})}


def _connect_seconds(action: Send) -> float:
    return min(_CONNECT_SECONDS, action.timeout)


def timeout_of(action: Send) -> httpx.Timeout:
    """What httpx may take for each step."""
    return httpx.Timeout(action.timeout, connect=_connect_seconds(action))


def reply_of(response: httpx.Response, body: bytes, asked: bytes | None) -> Reply:
    """The response as a reply; httpx.ReadError unless it came as it was sent, to what was asked."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    if not is_intact(body, headers):
        raise httpx.ReadError("the answer does not fit its Content-Digest")
    if asked is not None and not is_answer_to(asked, headers):
        raise httpx.ReadError("the answer is not to the body that was sent")
    if asked is not None and response.is_success and has_lost_a_digest(headers):
        raise httpx.ReadError("the answer lacks one of its digests; is its server older?")
    return Reply(response.status_code, headers, body)
