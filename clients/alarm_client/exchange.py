"""One request until it is answered: retries and the deadline, as steps that a driver performs."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from alarm_client.actions import CONNECT_SECONDS, Reply, Send, Sleep, Steps
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    ProtocolError,
    StatusError,
    status_error,
)
from alarm_client.fields import Json, read_object
from alarm_client.outages import LOG, Availability
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
    connect_timeout: float
    server: Availability
    id: str
    numbers: Iterator[int]

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.clocks.now()

    def next_request_id(self) -> str:
        """The id of the call's next request: the call's own and a number."""
        return f"{self.id}-{next(self.numbers)}"


RETRIED = frozenset({408, 429, 502, 503, 504})
# The server cannot be used as yet; that is logged as an outage is. A full queue (429) is not.
_UNAVAILABLE = frozenset({502, 503, 504})
# Of a 400: the request was not what had been sent. Of the second kind is uvicorn's own.
_GARBLED = "garbled"
_NO_HTTP = b"Invalid HTTP request received."
# Tries after the server read another Content-Type than the one that was sent: a bit may flip once,
# and something on the way may change it always.
_MOST_MISTYPED = 2


def start_call(
    url: str,
    timeout: float,
    retries: Retries,
    clocks: Clocks | None = None,
    *,
    connect_timeout: float = math.inf,
    server: Availability | None = None,
) -> Call:
    """A call whose deadline is `timeout` seconds from now.

    While `server` has never answered, it is tried for `connect_timeout` seconds only.
    """
    clocks = clocks or Clocks()
    return Call(
        url,
        timeout,
        clocks.now() + timeout,
        retries,
        clocks,
        connect_timeout,
        server or Availability(),
        os.urandom(6).hex(),
        count(1),
    )


def exchange(call: Call, method: str, path: str, body: bytes | None = None) -> Steps[Reply]:
    """The reply with status 200; every other is raised."""
    reply = yield from settle(call, method, path, body)
    if reply.status != 200:
        raise refusal(reply, _where(call, path))
    return reply


def settle(
    call: Call,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str] | None = None,
) -> Steps[Reply]:
    """The first reply that is final.

    Connection errors and `RETRIED` are tried again, unless the server calls it final (`retryable`
    false).
    """
    num_unconnected = num_refused = num_mistyped = 0
    connects_until: float | None = None  # set while nothing has ever answered
    while True:
        failure: AlarmError
        started = call.clocks.now()
        time_left = _time_left(call, path)
        connect_seconds = min(CONNECT_SECONDS, time_left)
        if not call.server.has_answered:
            limit = call.connect_timeout if connects_until is None else connects_until - started
            connect_seconds = max(0.001, min(connect_seconds, limit))
        send = Send(method, path, body, time_left, headers, call.next_request_id(), connect_seconds)
        try:
            reply: Reply = yield send
        except AlarmConnectionError as error:
            failure = error
            most = call.retries.max_reconnects
            if not error.retryable or (most is not None and num_unconnected >= most):
                raise
            if connects_until is None:
                # A try that was answered by nobody counts from its start, one that broke after
                # long work from its end.
                begun = max(started, call.clocks.now() - CONNECT_SECONDS)
                connects_until = begun + call.connect_timeout
            num_tries = num_unconnected + num_refused + 1
            delay = _reconnect_delay(call, path, num_unconnected, num_tries, error, connects_until)
            num_unconnected += 1
            patience = _connects_left(call, connects_until)
            is_logged = call.server.failed(str(error), started, call.clocks.now(), patience)
            level = logging.DEBUG  # of an outage the beginning, the length and the end are said
        else:
            now = call.clocks.now()
            if reply.status not in _UNAVAILABLE:
                call.server.recovered(call.url, now)
            if reply.status == 200:
                return reply
            failure = refusal(reply, _where(call, path))
            if is_of_alarm(reply):
                call.server.has_answered = True
            is_garbled = failure.code == _GARBLED or reply.body == _NO_HTTP
            if headers is None and reply.status == 422 and "accept-post" in reply.headers:
                num_mistyped += 1
                is_garbled = num_mistyped <= _MOST_MISTYPED
            may_pass = reply.status in RETRIED and failure.retryable
            if not may_pass and not is_garbled:
                return reply
            retry_after = parse_retry_after(reply.headers.get("retry-after"), call.clocks.wall)
            num_tries = num_unconnected + num_refused + 1
            delay = _delay(call, path, num_refused, num_tries, failure, retry_after)
            num_refused += 1
            is_outage = reply.status in _UNAVAILABLE
            is_logged = is_outage and call.server.failed(str(failure), started, now, call.time_left)
            level = logging.DEBUG if is_outage else logging.INFO
        if not is_logged:
            LOG.log(level, "%s (try %d follows in %.1f s)", failure, num_tries + 1, delay)
        yield Sleep(delay)


def is_of_alarm(reply: Reply) -> bool:
    """Whether a reply is an ALaRM server's, and not of a gateway or of another server."""
    answer = _object_or_empty(reply)
    error = answer.get("error")
    is_error = isinstance(error, dict) and "retryable" in error  # which others do not say
    return is_error or ("status" in answer and "reason" in answer)


def refusal(reply: Reply, where: str) -> StatusError:
    """The error that a reply other than 200 stands for, in the server's own words if it has any."""
    code, message, retryable = None, "", reply.status in RETRIED
    answer = _object_or_empty(reply)
    error = answer.get("error")
    if isinstance(error, dict):
        code = None if error.get("code") is None else str(error["code"])
        message = str(error.get("message") or "")
        retryable = bool(error.get("retryable", retryable))
    elif "reason" in answer:  # of /health/ready
        code = str(answer.get("status"))
        message = str(answer["reason"])
    message = message or reply.body[:200].decode("utf-8", "replace") or "no reason given"
    told = f" (request {reply.request_id})" if reply.request_id else ""
    return status_error(reply.status)(
        f"{where} answered {reply.status}: {message}{_hint(reply, code)}{told}",
        status=reply.status,
        code=code,
        retryable=retryable,
        request_id=reply.request_id,
    )


def _object_or_empty(reply: Reply) -> Json:
    try:
        return read_object(reply.body)
    except ProtocolError:
        return {}


def _hint(reply: Reply, code: str | None) -> str:
    if reply.status == 401:
        return " (set ALARM_API_KEY, or pass api_key=)"
    if 300 <= reply.status < 400:
        target = reply.headers.get("location", "")[:200]
        return f" (it redirects to {target!r}: is that the server's own URL?)"
    return " (is this the URL of an ALaRM server?)" if reply.status == 404 and code is None else ""


def _where(call: Call, path: str) -> str:
    return call.url + path.partition("?")[0]  # the query of a relay's caller is its own


def _time_left(call: Call, path: str) -> float:
    if call.time_left <= 0:
        raise DeadlineExceeded(
            f"{_where(call, path)}: the {call.timeout:g} s of this call are over", retryable=True
        )
    return call.time_left


def _connects_left(call: Call, connects_until: float) -> float:
    """Seconds that are left for connection errors."""
    if call.server.has_answered:
        return call.time_left
    return min(call.time_left, connects_until - call.clocks.now())


def _reconnect_delay(
    call: Call,
    path: str,
    attempt: int,
    num_tries: int,
    failure: AlarmConnectionError,
    connects_until: float,
) -> float:
    connects_left = _connects_left(call, connects_until)
    retries, dice = call.retries.of_connections, call.clocks.dice()
    delay = retry_delay(retries, attempt, time_left=connects_left, dice=dice)
    if delay is not None:
        return delay
    if call.server.has_answered or call.deadline <= connects_until:
        raise _given_up(call, path, num_tries, failure) from failure
    raise AlarmConnectionError(
        f"{failure}; no ALaRM server has ever answered there, and this call has tried for "
        f"{call.connect_timeout:g} s (connect_timeout), {num_tries} tries in all. Check the URL "
        "(ALARM_URL) and that the server runs; one that starts late is waited for by "
        "wait_ready(), or with a longer connect_timeout",
        retryable=True,
        request_id=failure.request_id,
    ) from failure


def _delay(
    call: Call,
    path: str,
    attempt: int,
    num_tries: int,
    failure: AlarmError,
    retry_after: float | None,
) -> float:
    delay = retry_delay(
        call.retries,
        attempt,
        time_left=call.time_left,
        dice=call.clocks.dice(),
        retry_after=retry_after,
    )
    if delay is None:
        raise _given_up(call, path, num_tries, failure) from failure
    return delay


def _given_up(call: Call, path: str, num_tries: int, failure: AlarmError) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{_where(call, path)}: gave up after {num_tries} tries, as another does not fit in the "
        f"{call.timeout:g} s of this call; the last try: {failure}",
        status=failure.status,
        code=failure.code,
        retryable=True,
        request_id=failure.request_id,
    )
