"""The client's calls as flows without I/O, written once for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from alarm_client._parsing import read_catalogue
from alarm_client._payloads import (
    Payload,
    fits_limits,
    group_order,
    require_splittable,
    split,
    split_in_two,
)
from alarm_client._retry import (
    RETRIED,
    Call,
    Flow,
    Gather,
    Host,
    Reply,
    Send,
    Sleep,
    error_from_reply,
    is_of_alarm,
    request,
)
from alarm_client.errors import (
    AlarmConnectionError,
    AlarmError,
    DeadlineExceeded,
    ProtocolError,
    StatusError,
    TooLarge,
)
from alarm_client.types import Catalogue, Limits

T = TypeVar("T")

# A call within these limits is sent directly; a larger one fetches the server's limits first.
SAFE = Limits(max_samples=256, max_body_bytes=4 * 1024 * 1024)
# Reloads of a recipe that one call tolerates.
_MAX_RELOADS = 2
_POLL_SECONDS = 1.0
_POLL_TIMEOUT = 10.0


class CachedLimits:
    """The server's limits, once fetched."""

    __slots__ = ("limits",)

    def __init__(self) -> None:
        self.limits: Limits | None = None


def run_payload(call: Call, job: Payload[T], known: CachedLimits) -> Flow[T]:
    """The result of a payload, sent in as many requests as the server's limits require.

    Samples of a group are sent next to each other, so that a split keeps them together.
    """
    order = group_order([sample.group for sample in job.samples])
    result = yield from _run_ordered(call, job.ordered(order), known)
    return job.restore(result, order)


def _run_ordered(call: Call, job: Payload[T], known: CachedLimits) -> Flow[T]:
    catalogue: Catalogue | None = None
    if known.limits is None:
        if fits_limits(job, SAFE):
            return (yield from _send_payload(call, job))
        catalogue = yield from fetch_catalogue(call)
        known.limits = catalogue.limits
    parts = split(job, known.limits)
    if len(parts) == 1:
        return (yield from _send_payload(call, job))
    yield from _require_splittable(call, job, catalogue)
    return (yield from _send_parts(call, job, parts))


def _require_splittable(call: Call, job: Payload[T], catalogue: Catalogue | None) -> Flow[None]:
    """Raise ValueError if the rule normalizes rewards over one request, so that parts would differ.

    The recipe's rule is that of now, as recipes are reloaded; a server that does not list its
    recipes is not asked for more.
    """
    if not job.is_combined_at_once:
        return
    if job.rule is None and catalogue is None:
        try:
            catalogue = yield from fetch_catalogue(call)
        except AlarmError:
            return
    require_splittable(job, () if catalogue is None else catalogue.recipes)


def _send_parts(call: Call, job: Payload[T], parts: Sequence[Payload[T]]) -> Flow[T]:
    """The merged results of a call's parts, sent at the same time.

    All are sent again if the recipe was reloaded in between, so that the answers differ in their
    fingerprints; not if they differ in the same way again, as those of two servers would.
    """
    differences: set[str] = set()
    while True:
        flows = tuple(_send_payload(call, part, is_part=True) for part in parts)
        results = yield Gather(flows)
        try:
            return job.merge(results)
        except ProtocolError as error:
            if str(error) in differences or len(differences) == _MAX_RELOADS:
                raise
            differences.add(str(error))


def fetch_catalogue(call: Call) -> Flow[Catalogue]:
    """The server's models, recipes and limits."""
    reply = yield from request(call, "GET", "/models")
    catalogue = _read(reply, lambda: read_catalogue(reply.body))
    call.server.has_answered = True
    return catalogue


def post_admin(call: Call, path: str) -> Flow[None]:
    """Make a change on all servers with an admin key; return once it is made."""
    yield Gather(tuple(_post_admin(call.only_on(host), path) for host in call.hosts))


def _post_admin(call: Call, path: str) -> Flow[None]:
    yield from request(call, "POST", path)
    call.server.has_answered = True


def await_ready(call: Call) -> Flow[None]:
    """Return when a server is ready; at the deadline, raise the last reason why none was."""
    while True:
        failures: list[tuple[Host, float, AlarmError]] = []
        for host in call.hosts:
            begun = call.clocks.now()
            failure = yield from _ready_failure(call.on(host))
            if failure is None:
                host.server.recovered(host.url, call.clocks.now())
                return
            failures.append((host, begun, failure))
        if call.time_left <= _POLL_SECONDS:
            last = failures[-1][-1]
            raise type(last)(
                f"not ready within {call.timeout:g} s: {last}",
                status=last.status,
                code=last.code,
                retryable=True,
                request_id=last.request_id,
            ) from last
        for host, begun, reason in failures:
            host.server.failed(str(reason), begun, call.clocks.now(), call.time_left)
        yield Sleep(_POLL_SECONDS)


def _ready_failure(call: Call) -> Flow[AlarmError | None]:
    path = "/health/ready"
    try:
        timeout = min(_POLL_TIMEOUT, max(0.0, call.time_left))
        request_id, host = call.next_request_id(), call.host.index
        reply: Reply = yield Send("GET", path, None, timeout, request_id=request_id, host=host)
    except (AlarmConnectionError, DeadlineExceeded) as error:
        if isinstance(error, AlarmConnectionError) and not error.retryable:
            raise
        return error
    call.server.has_answered |= is_of_alarm(reply)
    if reply.status == 200:
        return None
    failure: StatusError = error_from_reply(reply, call.url + path)
    if reply.status not in RETRIED:
        raise failure
    return failure


def _send_payload(call: Call, job: Payload[T], *, is_part: bool = False) -> Flow[T]:
    try:
        # Samples of a group that the server holds must meet on one server.
        reply = yield from request(call.placed(is_held=job.is_held), "POST", job.path, job.body)
    except TooLarge:
        if len(job.samples) < 2:
            raise
        if not is_part:
            yield from _require_splittable(call, job, None)
        # At the same time: the server may hold members of a group that is in both halves.
        return (yield from _send_parts(call, job, split_in_two(job)))
    except DeadlineExceeded as error:
        if not job.is_held:
            raise
        raise DeadlineExceeded(
            f"{error}; the server holds samples with group_size until all of their group are there "
            "or the recipe's group_timeout_s (120 s unless set) has passed, so the timeout must be "
            "longer",
            status=error.status,
            code=error.code,
            retryable=error.retryable,
            request_id=error.request_id,
        ) from error
    result = _read(reply, lambda: job.read(reply.body, job.samples))
    call.server.has_answered = True
    return result


def _read(reply: Reply, read: Callable[[], T]) -> T:
    """The result of `read`; adds the request id to a ProtocolError."""
    try:
        return read()
    except ProtocolError as error:
        error.request_id = reply.request_id
        raise
