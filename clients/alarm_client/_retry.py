"""Retries: exponential backoff with jitter under a deadline, as flows without I/O."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeAlias, TypeVar

from alarm_client._parsing import Json, read_object
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    Overloaded,
    ProtocolError,
    StatusError,
    status_error,
)


@dataclass(frozen=True, slots=True)
class Retries:
    """The retry policy of a call within its deadline.

    Delays double from `first` up to `longest` seconds, or up to `longest_reconnect` after a
    connection error. Retries end at the deadline; `max_reconnects` also bounds those after
    connection errors.
    """

    first: float = 0.5
    longest: float = 30.0
    max_reconnects: int | None = None
    longest_reconnect: float = 5.0

    def __post_init__(self) -> None:
        for name in ("first", "longest", "longest_reconnect"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be seconds of at least 0, got {value!r}")
        if self.max_reconnects is not None and self.max_reconnects < 0:
            raise ValueError(f"max_reconnects must be at least 0, got {self.max_reconnects!r}")

    @property
    def of_connections(self) -> Retries:
        """The policy after connection errors."""
        return replace(self, longest=min(self.longest, self.longest_reconnect))


def backoff_delay(
    retries: Retries,
    attempt: int,
    *,
    time_left: float,
    jitter: float,
    retry_after: float | None = None,
) -> float | None:
    """Seconds to wait after the failed `attempt` (from 0), or None if no time is left.

    `jitter` in [0, 1) spreads callers: exponential backoff waits between half and all of the
    doubled delay, a `Retry-After` between one and one and a half times its value. Backoff is cut
    to half of the time that is left, so that some is left for the attempt itself; with less than
    half of `first` left there is no further attempt.
    """
    if retry_after is None:
        if time_left <= retries.first / 2:
            return None
        backoff = min(retries.longest, retries.first * 2.0 ** min(attempt, 30))
        delay = min(backoff * (0.5 + jitter / 2), time_left / 2)
    else:
        delay = max(retry_after, retries.first / 2) * (1 + jitter / 2)
        delay = min(delay, max(retry_after, time_left * 0.9))
    return delay if delay < time_left else None


def parse_retry_after(value: str | None, wall_clock: Callable[[], float]) -> float | None:
    """The seconds of a Retry-After header, a number or a date; None for anything else."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime  # rare, and slow to import

        try:
            seconds = parsedate_to_datetime(value).timestamp() - wall_clock()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


T = TypeVar("T")

CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; yields its Reply, or raises AlarmConnectionError or DeadlineExceeded.

    `headers` override the client's headers of the same names. `connect_timeout`: seconds to
    establish the connection. `host`: which of the client's servers.
    """

    method: str
    path: str
    body: bytes | None
    timeout: float
    headers: Mapping[str, str] | None = None
    request_id: str | None = None
    connect_timeout: float = CONNECT_SECONDS
    host: int = 0


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for this many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gather:
    """Run several flows concurrently; yields their results in order."""

    flows: tuple[Flow[Any], ...]


Action: TypeAlias = Send | Sleep | Gather
Flow: TypeAlias = Generator[Action, Any, T]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; header names are in lower case, values decoded as Latin-1."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str | None = None


LOG = logging.getLogger("alarm_client")

_LOG_EVERY_SECONDS = 30.0


class Availability:
    """Whether a server is reachable, shared by all calls of a client in any thread or event loop.

    `has_answered`: whether an ALaRM server has ever answered at this URL. An outage is logged when
    it begins, every 30 seconds while it lasts and when it ends, once for all waiting calls.
    `skipped_until`: when calls that have other servers may use this one again, and `busy_until`:
    when those may that need not all reach the same server, because its queue was full.
    """

    def __init__(self) -> None:
        self.has_answered = False
        self.skipped_until = self.busy_until = -math.inf
        self._since: float | None = None
        self._recovered = -math.inf
        self._logged = 0.0
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def failed(self, reason: str, begun: float, now: float, time_left: float) -> bool:
        """Record that a request started at `begun` got no answer; return whether that was logged.

        `time_left`: seconds for which the call will keep trying.
        """
        if begun < self._recovered:
            return False  # another request has been answered since
        if self._pid != os.getpid():  # forked, perhaps while another thread held the lock
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            is_first = self._since is None
            if self._since is None:
                self._since = now
            elif now - self._logged < _LOG_EVERY_SECONDS:
                return False
            self._logged = now
            seconds = now - self._since
        if is_first:
            LOG.warning("%s (retrying for up to %.0f s)", reason, time_left)
        else:
            LOG.warning("%s (unavailable for %.0f s, still retrying)", reason, seconds)
        return True

    def recovered(self, url: str, now: float) -> None:
        """Record that a request got an answer."""
        since, self._since = self._since, None
        self._recovered = now
        self.skipped_until = self.busy_until = -math.inf
        if since is not None:
            LOG.warning("%s is available again after %.1f s", url, now - since)


def draw_jitter() -> float:
    """A number in [0, 1), not drawn from `random`, which trainers seed for reproducibility."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks and the source of jitter, which tests replace."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    jitter: Callable[[], float] = draw_jitter


@dataclass(frozen=True, slots=True)
class Host:
    """One of a client's servers: its URL, whether it is reachable, and its index."""

    url: str
    server: Availability
    index: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """What all requests of one call share: the servers, the deadline, the retry policy.

    `host` is the server of the next request, `hosts` are all servers in the order in which they are
    tried. `turns` numbers the requests that may go to any of them. With `is_held` the server holds
    samples until the rest of their group is there, so that a full queue is no reason for another.
    """

    host: Host
    hosts: tuple[Host, ...]
    turns: Iterator[int]
    timeout: float
    deadline: float
    retries: Retries
    clocks: Clocks
    connect_timeout: float
    id: str
    numbers: Iterator[int]
    is_held: bool = False

    @property
    def url(self) -> str:
        """The URL of the server."""
        return self.host.url

    @property
    def server(self) -> Availability:
        """Whether the server is reachable."""
        return self.host.server

    @property
    def has_answered(self) -> bool:
        """Whether any of the servers has ever answered."""
        return any(host.server.has_answered for host in self.hosts)

    def on(self, host: Host) -> Call:
        """The call with its next request to a server."""
        return replace(self, host=host)

    def only_on(self, host: Host) -> Call:
        """The call with all of its requests to one server."""
        return replace(self, host=host, hosts=(host,))

    def placed(self, *, is_held: bool) -> Call:
        """The call with its servers in the order of the next turn, or as they are if it is held."""
        if is_held:
            return replace(self, is_held=True)
        at = next(self.turns) % len(self.hosts)
        hosts = self.hosts[at:] + self.hosts[:at]
        return replace(self, host=hosts[0], hosts=hosts)

    @property
    def available(self) -> Host | None:
        """The first server that is not skipped."""
        now = self.clocks.now()
        return next((host for host in self.hosts if self.due(host) <= now), None)

    def due(self, host: Host) -> float:
        """When the call may use a server."""
        server = host.server
        if self.is_held:
            return server.skipped_until
        return max(server.skipped_until, server.busy_until)

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self.clocks.now()

    def next_request_id(self) -> str:
        """The id of the call's next request: the call's own and a number."""
        return f"{self.id}-{next(self.numbers)}"


RETRIED = frozenset({408, 429, 502, 503, 504})
# Logged as an outage; a full queue (429) is not one.
_UNAVAILABLE = frozenset({502, 503, 504})
# A 400 for a request that was corrupted in transit; the second is uvicorn's own message.
_GARBLED = "garbled"
_NO_HTTP = b"Invalid HTTP request received."
# Number of retries if the server received another Content-Type than was sent: enough for a
# corrupted request, few for a gateway that always rewrites the header.
_MOST_MISTYPED = 2


def start_call(
    hosts: Sequence[Host],
    timeout: float,
    retries: Retries,
    clocks: Clocks | None = None,
    *,
    connect_timeout: float = math.inf,
    turns: Iterator[int] | None = None,
) -> Call:
    """A call whose deadline is `timeout` seconds from now.

    Servers of which none has ever answered are tried for `connect_timeout` seconds only.
    """
    clocks = clocks or Clocks()
    return Call(
        hosts[0],
        tuple(hosts),
        turns or count(),
        timeout,
        clocks.now() + timeout,
        retries,
        clocks,
        connect_timeout,
        os.urandom(6).hex(),
        count(1),
    )


def request(call: Call, method: str, path: str, body: bytes | None = None) -> Flow[Reply]:
    """The reply if its status is 200; any other status is raised as an error."""
    reply = yield from request_with_retries(call, method, path, body)
    if reply.status != 200:
        raise error_from_reply(reply, _where(call, path))
    return reply


def request_with_retries(
    call: Call,
    method: str,
    path: str,
    body: bytes | None,
    headers: Mapping[str, str] | None = None,
) -> Flow[Reply]:
    """The first final reply.

    Connection errors and the statuses in `RETRIED` are retried, unless the server marks the error
    as not retryable. A retry goes to the next server that is not skipped at once, and waits if
    all are.
    """
    call = call.on(call.available or call.host)
    num_unconnected = num_refused = num_mistyped = 0
    connects_until: float | None = None  # set while no server has ever answered
    while True:
        failure: AlarmError
        started = call.clocks.now()
        time_left = _time_left(call, path)
        connect_seconds = min(CONNECT_SECONDS, time_left)
        if not call.has_answered:
            limit = call.connect_timeout if connects_until is None else connects_until - started
            connect_seconds = max(0.001, min(connect_seconds, limit))
        request_id, host = call.next_request_id(), call.host.index
        send = Send(method, path, body, time_left, headers, request_id, connect_seconds, host)
        try:
            reply: Reply = yield send
        except DeadlineExceeded:
            # The server may accept connections but never answer: later calls prefer the others.
            call.server.skipped_until = call.clocks.now() + call.retries.longest_reconnect
            raise
        except AlarmConnectionError as error:
            failure = error
            most = call.retries.max_reconnects
            if not error.retryable or (most is not None and num_unconnected >= most):
                raise
            if connects_until is None:
                # `connect_timeout` counts from the start of an attempt that could not connect, and
                # from the end of one whose connection broke later.
                begun = max(started, call.clocks.now() - CONNECT_SECONDS)
                connects_until = begun + call.connect_timeout
            num_tries = num_unconnected + num_refused + 1
            delay = _reconnect_delay(call, path, num_unconnected, num_tries, error, connects_until)
            num_unconnected += 1
            connects_left = _connects_left(call, connects_until)
            is_logged = call.server.failed(str(error), started, call.clocks.now(), connects_left)
            level = logging.DEBUG  # start, duration and end of an outage are logged elsewhere
        else:
            now = call.clocks.now()
            if reply.status not in _UNAVAILABLE:
                call.server.recovered(call.url, now)
            if reply.status == 200:
                return reply
            failure = error_from_reply(reply, _where(call, path))
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
            LOG.log(level, "%s (attempt %d follows in %.1f s)", failure, num_tries + 1, delay)
        until = call.clocks.now() + delay
        if isinstance(failure, Overloaded):
            call.server.busy_until = until
        else:
            call.server.skipped_until = until
        if len(call.hosts) == 1 or call.due(call.host) < until:
            yield Sleep(delay)
        else:
            call = yield from _on_next_host(call, delay)


def _on_next_host(call: Call, delay: float) -> Flow[Call]:
    """The call on its next server: one that is not skipped, else the first to be due again."""
    now = call.clocks.now()
    for host in call.hosts:
        if host is not call.host and call.due(host) <= now:
            return call.on(host)
    due = min(call.hosts, key=call.due)
    yield Sleep(max(0.0, min(delay, call.due(due) - now)))
    return call.on(due)


def is_of_alarm(reply: Reply) -> bool:
    """Whether a reply comes from an ALaRM server rather than a gateway or another server."""
    answer = _object_or_empty(reply)
    error = answer.get("error")
    is_error = isinstance(error, dict) and "retryable" in error  # a field of ALaRM servers only
    return is_error or ("status" in answer and "reason" in answer)


def error_from_reply(reply: Reply, where: str) -> StatusError:
    """The error for a reply other than 200, with the server's message if it has one."""
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
    request = f" (request {reply.request_id})" if reply.request_id else ""
    return status_error(reply.status)(
        f"{where} answered {reply.status}: {message}{_hint(reply, code)}{request}",
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
        return f" (it redirects to {target!r}: use the final URL of the server)"
    return " (is this the URL of an ALaRM server?)" if reply.status == 404 and code is None else ""


def _where(call: Call, path: str) -> str:
    return call.url + path.partition("?")[0]  # without the query, which may contain secrets


def _time_left(call: Call, path: str) -> float:
    if call.time_left <= 0:
        raise DeadlineExceeded(
            f"{_where(call, path)}: the timeout of {call.timeout:g} s has passed", retryable=True
        )
    return call.time_left


def _connects_left(call: Call, connects_until: float) -> float:
    """Seconds left to retry connection errors."""
    if call.has_answered:
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
    retries, jitter = call.retries.of_connections, call.clocks.jitter()
    attempt //= len(call.hosts)
    delay = backoff_delay(retries, attempt, time_left=connects_left, jitter=jitter)
    if delay is not None:
        return delay
    if call.has_answered or call.deadline <= connects_until:
        raise _given_up(call, path, num_tries, failure) from failure
    raise AlarmConnectionError(
        f"{failure}; no ALaRM server has answered there yet; gave up after "
        f"{call.connect_timeout:g} s (connect_timeout) and {_attempts(num_tries)}. Check the URL "
        "(ALARM_URL) and that the server is running; for a server that starts late, call "
        "wait_ready() first or raise connect_timeout",
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
    delay = backoff_delay(
        call.retries,
        attempt // len(call.hosts),
        time_left=call.time_left,
        jitter=call.clocks.jitter(),
        retry_after=retry_after,
    )
    if delay is None:
        raise _given_up(call, path, num_tries, failure) from failure
    return delay


def _given_up(call: Call, path: str, num_tries: int, failure: AlarmError) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{_where(call, path)}: gave up after {_attempts(num_tries)}, as no time is left for "
        f"another within {call.timeout:g} s; last attempt: {failure}",
        status=failure.status,
        code=failure.code,
        retryable=True,
        request_id=failure.request_id,
    )


def _attempts(number: int) -> str:
    return f"{number} attempt{'' if number == 1 else 's'}"
