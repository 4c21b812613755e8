"""The calls of the client as steps without I/O: written once, driven by threads or by asyncio."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from alarm_client.actions import Reply, Send, Sleep, Steps, Together
from alarm_client.answers import read_catalogue
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    ProtocolError,
    StatusError,
    TooLarge,
)
from alarm_client.exchange import RETRIED, Call, exchange, is_of_alarm, refusal
from alarm_client.types import Catalogue, Limits
from alarm_client.wire import Job, fits, halved, split

T = TypeVar("T")

# A call within these is sent at once; a larger one asks the server for its limits first.
SAFE = Limits(max_samples=256, max_body_bytes=4 * 1024 * 1024)
_POLL_SECONDS = 1.0
_POLL_TIMEOUT = 10.0


class KnownLimits:
    """The server's limits once they have been asked for."""

    __slots__ = ("limits",)

    def __init__(self) -> None:
        self.limits: Limits | None = None


def run_job(call: Call, job: Job[T], known: KnownLimits) -> Steps[T]:
    """The result of a job, sent in as many requests as the server's limits ask for."""
    if known.limits is None:
        if fits(job, SAFE):
            return (yield from _send_job(call, job))
        known.limits = (yield from fetch_catalogue(call)).limits
    parts = split(job, known.limits)
    if len(parts) == 1:
        return (yield from _send_job(call, job))
    results = yield Together(tuple(_send_job(call, part) for part in parts))
    return job.merge(results)


def fetch_catalogue(call: Call) -> Steps[Catalogue]:
    """What the server offers."""
    reply = yield from exchange(call, "GET", "/models")
    catalogue = _read(reply, lambda: read_catalogue(reply.body))
    call.server.has_answered = True
    return catalogue


def await_ready(call: Call) -> Steps[None]:
    """Ends when the server is ready; past the deadline raises the last reason why it was not."""
    while True:
        failure = yield from _ready_failure(call)
        now = call.clocks.now()
        if failure is None:
            call.server.recovered(call.url, now)
            return
        if call.time_left <= _POLL_SECONDS:
            raise type(failure)(
                f"not ready within {call.timeout:g} s: {failure}",
                status=failure.status,
                code=failure.code,
                retryable=True,
                request_id=failure.request_id,
            ) from failure
        call.server.failed(str(failure), now, call.time_left)
        yield Sleep(_POLL_SECONDS)


def _ready_failure(call: Call) -> Steps[AlarmError | None]:
    path = "/health/ready"
    try:
        timeout = min(_POLL_TIMEOUT, max(0.0, call.time_left))
        reply: Reply = yield Send("GET", path, None, timeout, request_id=call.next_request_id())
    except (AlarmConnectionError, DeadlineExceeded) as error:
        if isinstance(error, AlarmConnectionError) and not error.retryable:
            raise
        return error
    call.server.has_answered |= is_of_alarm(reply)
    if reply.status == 200:
        return None
    failure: StatusError = refusal(reply, call.url + path)
    if reply.status not in RETRIED:
        raise failure
    return failure


def _send_job(call: Call, job: Job[T]) -> Steps[T]:
    try:
        reply = yield from exchange(call, "POST", job.path, job.body)
    except TooLarge:
        if len(job.samples) < 2:
            raise
        results = []
        for part in halved(job):
            results.append((yield from _send_job(call, part)))
        return job.merge(results)
    result = _read(reply, lambda: job.read(reply.body, job.samples))
    call.server.has_answered = True
    return result


def _read(reply: Reply, read: Callable[[], T]) -> T:
    """What is read of a reply; what is wrong with it is told with its request's id."""
    try:
        return read()
    except ProtocolError as error:
        error.request_id = reply.request_id
        raise
