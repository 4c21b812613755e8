"""One request until it is answered: retries and the deadline, as steps that a driver performs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alarm_client.actions import Reply, Send, Sleep, Steps
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    ProtocolError,
    StatusError,
    status_error,
)
from alarm_client.fields import read_object
from alarm_client.retries import Retries, parse_retry_after, retry_delay


def throw_dice() -> float:
    """A number in [0, 1), not from `random`: trainers seed that and count on its sequence."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


@dataclass(frozen=True, slots=True)
class Clocks:
    """Time and chance, which tests replace."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    dice: Callable[[], float] = throw_dice


@dataclass(frozen=True, slots=True)
class Call:
    """What every request of one call shares: the server's URL, the deadline and the patience."""

    url: str
    timeout: float
    deadline: float
    retries: Retries
    clocks: Clocks

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.clocks.now()


RETRIED = frozenset({408, 429, 502, 503, 504})
# Of a 400: the request was not what had been sent. Of the second kind is uvicorn's own.
_GARBLED = "garbled"
_NO_HTTP = b"Invalid HTTP request received."


def start_call(url: str, timeout: float, retries: Retries, clocks: Clocks | None = None) -> Call:
    """A call whose deadline is `timeout` seconds from now."""
    clocks = clocks or Clocks()
    return Call(url, timeout, clocks.now() + timeout, retries, clocks)


def exchange(call: Call, method: str, path: str, body: bytes | None = None) -> Steps[Reply]:
    """The reply with status 200; every other is raised."""
    reply = yield from settle(call, method, path, body)
    if reply.status != 200:
        raise refusal(reply, call.url + path)
    return reply


def settle(
    call: Call,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str] | None = None,
) -> Steps[Reply]:
    """The first reply that is final; what broke on its way and `RETRIED` are tried again."""
    num_broken = 0
    attempt = 0
    while True:
        failure: AlarmError
        retry_after = None
        try:
            reply: Reply = yield Send(method, path, body, _time_left(call, path), headers)
        except AlarmConnectionError as error:
            failure = error
            num_broken += 1
            if num_broken > call.retries.max_reconnects:
                raise
        else:
            if reply.status == 200:
                return reply
            failure = refusal(reply, call.url + path)
            is_garbled = failure.code == _GARBLED or reply.body == _NO_HTTP
            if reply.status not in RETRIED and not is_garbled:
                return reply
            retry_after = parse_retry_after(reply.headers.get("retry-after"), call.clocks.wall)
        yield Sleep(_delay(call, path, attempt, failure, retry_after))
        attempt += 1


def refusal(reply: Reply, where: str) -> StatusError:
    """The error that a reply other than 200 stands for, in the server's own words if it has any."""
    code, message, retryable = None, "", reply.status in RETRIED
    try:
        answer = read_object(reply.body)
    except ProtocolError:
        answer = {}
    error = answer.get("error")
    if isinstance(error, dict):
        code = str(error.get("code"))
        message = str(error.get("message"))
        retryable = bool(error.get("retryable", retryable))
    elif "reason" in answer:  # of /health/ready
        code = str(answer.get("status"))
        message = str(answer["reason"])
    message = message or reply.body[:200].decode("utf-8", "replace") or "no reason given"
    return status_error(reply.status)(
        f"{where} answered {reply.status}: {message}{_hint(reply.status, code)}",
        status=reply.status,
        code=code,
        retryable=retryable,
    )


def _hint(status: int, code: str | None) -> str:
    if status == 401:
        return " (set ALARM_API_KEY, or pass api_key=)"
    return " (is this the URL of an ALaRM server?)" if status == 404 and code is None else ""


def _time_left(call: Call, path: str) -> float:
    if call.time_left <= 0:
        raise DeadlineExceeded(
            f"{call.url}{path}: the {call.timeout:g} s of this call are over", retryable=True
        )
    return call.time_left


def _delay(
    call: Call, path: str, attempt: int, failure: AlarmError, retry_after: float | None
) -> float:
    delay = retry_delay(
        call.retries,
        attempt,
        time_left=call.time_left,
        dice=call.clocks.dice(),
        retry_after=retry_after,
    )
    if delay is None:
        raise DeadlineExceeded(
            f"{call.url}{path}: gave up after {attempt + 1} tries, as another does not fit in the "
            f"{call.timeout:g} s of this call; the last try: {failure}",
            status=failure.status,
            code=failure.code,
            retryable=True,
        ) from failure
    return delay
