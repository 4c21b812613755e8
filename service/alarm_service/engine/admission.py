"""Admission control: which requests the queue accepts, counted in tokens, and in which order."""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from alarm_models.types import Sample, num_characters
from alarm_service.engine.fair_queueing import INTERNAL, Caller, VirtualTimes
from alarm_service.errors import Overloaded

__all__ = ["Admission", "Throughput", "content_of", "estimate_tokens"]

#: Characters per token, and tokens per template: an estimate, made before tokenization.
_CHARACTERS_A_TOKEN = 4
_TEMPLATE_TOKENS = 16

#: Tokens that may wait for capacity: a multiple of the queue, and for a small queue what fits in a
#: few megabytes, since the callers that wait are trainers that stop when they are refused.
_MAX_WAITING_QUEUES = 8
_MIN_WAITING_TOKENS = 1_000_000

#: Characters at either end of a text that identify a retried request.
_EDGE = 64

#: A queue of this many tokens keeps the devices busy: two large batches.
_BUSY_TOKENS = 16_384

#: Seconds for which an empty queue is reserved for refused requests that will be retried.
_IDLE_S = 2.0

#: The longest `Retry-After` before throughput was measured.
_UNMEASURED_S = 5.0

#: A request larger than this part of the queue is ordered as if it had only this size: by its
#: tokens alone, one of a thousand samples would come after a thousand requests of one.
_LARGE_SHARE = 16

#: Maximum number of reservations of refused requests.
_MAX_RESERVED = 4096

#: A reservation is kept until after its `Retry-After`, by this factor and these seconds more:
#: clients add jitter of up to half.
_LATE_TIMES, _LATE_S = 0.5, 10.0

#: The throughput assumed before any measurement, and its weight in seconds.
_ASSUMED_TOKENS_PER_S = 1000.0
_ASSUMED_S = 1.0

#: Half-life of a measurement, in seconds of work.
_HALF_LIFE_S = 60.0


def estimate_tokens(samples: Sequence[Sample]) -> int:
    """Estimate the tokens of samples from their characters, without tokenizing them."""
    return sum(
        _TEMPLATE_TOKENS + num_characters(sample) // _CHARACTERS_A_TOKEN for sample in samples
    )


def content_of(samples: Sequence[Sample]) -> int:
    """Return a hash that identifies a retried request.

    It covers the ends of the texts only.
    """
    texts = (text for one in samples for text in (one.prompt_text, one.completion_text))
    return hash(tuple((len(text), text[:_EDGE], text[-_EDGE:]) for text in texts))


class Throughput:
    """Measured throughput in tokens per second, while requests were waiting."""

    def __init__(self, assumed_tokens_per_s: float = _ASSUMED_TOKENS_PER_S) -> None:
        self._tokens = assumed_tokens_per_s * _ASSUMED_S
        self._seconds = _ASSUMED_S
        self._measured_s = 0.0

    @property
    def is_measured(self) -> bool:
        """Whether measurements outweigh the assumed throughput."""
        return self._measured_s > _ASSUMED_S

    @property
    def tokens_per_s(self) -> float:
        """The throughput; never 0."""
        return self._tokens / self._seconds

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Record the tokens scored in this many seconds of work."""
        kept = 0.5 ** (seconds / _HALF_LIFE_S)
        self._tokens = kept * self._tokens + num_tokens
        self._seconds = kept * self._seconds + seconds
        self._measured_s += seconds


@dataclass(eq=False, slots=True)
class _Claim:
    """A reservation: a request's position among those that wait for capacity.

    A refused request has one until ``expires``. A request that waits in the server has a ``turn``,
    which is set once there is capacity. A request that is sent again is identified by its
    ``content``, since it may use another connection than before; earlier ones are
    ``former_connections``.
    """

    caller: Caller
    flow: str
    content: int
    num_tokens: int
    start: float
    order: tuple[float, float]
    expires: float = math.inf
    turn: asyncio.Future[None] | None = None
    former_connections: set[str] = field(default_factory=set)

    @property
    def identity(self) -> tuple[str, int, int]:
        """The identity of a retried request."""
        return self.caller.key, self.content, self.num_tokens

    @property
    def is_granted(self) -> bool:
        """Whether capacity is reserved for it."""
        return self.turn is not None and self.turn.done()


class Admission:
    """Token-based admission control: admits whole requests, with fair queueing of callers.

    The capacity is the tokens scored in ``max_queue_s`` seconds at the measured throughput, but at
    most ``max_queued_tokens``; an empty queue accepts any request. Each caller may queue its share
    of the capacity, whatever others have queued, since callers are served in turns.

    A refused request keeps a reservation. Reservations are ordered by start-time fair queueing of
    the tokens admitted per caller, and precede new requests; but half of the queue is open to every
    request, so that devices do not idle until a client retries. The first in order is admitted once
    no more than half of the queue is occupied, however large the request is.
    """

    def __init__(
        self,
        max_queued_tokens: int,
        *,
        max_queue_s: float = 0.0,
        observe: Callable[[int, int], None] = lambda queued, reserved: None,
        is_ready: Callable[[], bool] = lambda: True,
        now: Callable[[], float] = time.monotonic,
        throughput: Throughput | None = None,
    ) -> None:
        self._max = max_queued_tokens
        self._max_queue_s = max_queue_s
        self._observe = observe
        self._is_ready = is_ready
        self._now = now
        self.throughput = throughput or Throughput()
        self.num_queued = 0
        self._admitted: VirtualTimes[str] = VirtualTimes()
        #: Queued tokens by flow.
        self._queued_by_flow: dict[str, int] = {}
        #: All claims in order, and by the identity of their requests.
        self._claims: list[_Claim] = []
        self._by_content: dict[tuple[str, int, int], list[_Claim]] = {}
        self._num_reserved = 0
        self._next_expiry = math.inf
        self._num_claims = 0
        #: The last granted claim, whose request calls `admit` next.
        self._due: _Claim | None = None
        self._empty_since = -math.inf
        self._busy_since: float | None = None
        self._busy_s = 0.0
        #: Tokens scored, and seconds of work, since throughput was last observed.
        self._done_tokens = 0
        self._done_s = 0.0

    def max_tokens(self) -> int:
        """Return the current capacity of the queue in tokens."""
        if not self._max_queue_s:
            return self._max
        return min(self._max, max(1, int(self._max_queue_s * self.throughput.tokens_per_s)))

    async def wait_for_capacity(self, num_tokens: int, caller: Caller = INTERNAL) -> None:
        """Wait for capacity for these tokens; raise `Overloaded` if too many are waiting.

        The caller must call `admit` before its next await; otherwise another request may take the
        capacity.
        """
        self._expire()
        most = max(_MIN_WAITING_TOKENS, _MAX_WAITING_QUEUES * self._max)
        num_waiting = sum(claim.num_tokens for claim in self._claims if claim.turn is not None)
        if num_waiting and num_waiting + num_tokens > most:
            raise self._overloaded(num_tokens, caller, None)
        claim = self._claim(num_tokens, caller, 0)
        claim.turn = asyncio.get_running_loop().create_future()
        try:
            self._grant()
            await claim.turn
            self._due = claim
            asyncio.get_running_loop().call_soon(self._lapse, claim)
        except BaseException:
            self._cancel(claim)
            raise

    @contextmanager
    def admit(
        self,
        num_tokens: int,
        caller: Caller = INTERNAL,
        content: Callable[[], int] = lambda: 0,
    ) -> Iterator[None]:
        """Occupy ``num_tokens`` of the queue while the block runs; raise `Overloaded` when full.

        ``content`` identifies a retried request, see `content_of`; it is called only where requests
        have been refused.
        """
        self._enter(num_tokens, caller, content)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            self._leave(num_tokens, caller.flow, is_done=is_done)

    def retry_after_s(self, num_tokens: int = 1, before: int = 0) -> int:
        """Return the seconds after which a request should be retried, by measured throughput.

        By then there is capacity for it and the ``before`` tokens ahead of it, and half of the
        queue has been scored; an earlier retry would only wait in the server.
        """
        left = self.num_queued + before + num_tokens - self.max_tokens()
        wait_s = max(left, self.num_queued / 2) / self.throughput.tokens_per_s
        if not self.throughput.is_measured:
            wait_s = min(wait_s, _UNMEASURED_S)
        return max(1, math.ceil(wait_s))

    def _enter(self, num_tokens: int, caller: Caller, content: Callable[[], int]) -> None:
        due, self._due = self._due, None
        if due is None:
            self._expire()
            claim = self._claim_of(num_tokens, caller, content()) if self._claims else None
            if not self._has_capacity(num_tokens, caller, claim):
                if claim is None and len(self._claims) < _MAX_RESERVED:
                    claim = self._claim(num_tokens, caller, content())
                raise self._overloaded(num_tokens, caller, claim)
            due = claim
        if due is None:
            self._admitted.serve(caller.flow)
            self._admitted.charge(caller.flow, num_tokens)
        else:
            self._remove(due)
            self._admitted.reach(due.start)
        self._change(num_tokens, caller.flow)

    def _leave(self, num_tokens: int, flow: str, *, is_done: bool) -> None:
        self._measure()
        if is_done:
            self._count_done(num_tokens)
        elif num_tokens > self._done_tokens:
            # An unknown amount of device time was spent on it.
            self._done_tokens, self._done_s, self._busy_s = 0, 0.0, 0.0
        self._expire()
        self._change(-num_tokens, flow)
        if not self.num_queued and not self._claims:
            self._admitted = VirtualTimes()  # nothing is waiting, so all callers start equal
        self._admitted.evict_idle({claim.flow for claim in self._claims})
        self._grant()

    def _has_capacity(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> bool:
        granted = sum(one.num_tokens for one in self._claims if one.is_granted and one is not claim)
        level, limit = self.num_queued + granted, self.max_tokens()
        if level + num_tokens <= limit / 2:
            return True
        if not level:
            return self._may_end_idleness(num_tokens, caller, claim)
        before = self._num_before(num_tokens, caller, claim)
        if level + before + num_tokens <= limit:
            return True
        if not before and level + num_tokens <= self._max:
            # It does not wait for tokens that others have queued beyond their shares.
            queued = self._queued_by_flow.get(caller.flow, 0) + num_tokens
            if queued <= limit / len({caller.flow, *self._queued_by_flow}):
                return True
        return claim is not None and not before and level <= limit / 2

    def _may_end_idleness(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> bool:
        """Return whether an empty queue accepts a request.

        It does, except that callers with a reservation briefly take precedence over one that has
        had more than its share, which could otherwise always send its next large request first.
        """
        if claim is not None and claim.turn is not None:
            return True
        if self._now() - self._empty_since >= _IDLE_S or not self._admitted.is_ahead(caller.flow):
            return True
        before = self._before(num_tokens, caller, claim)
        return all(one.caller.flow == caller.flow for one in before)

    def _num_before(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> int:
        """Return the tokens reserved ahead of a claim, or ahead of a request without one."""
        before = self._before(num_tokens, caller, claim)
        return sum(one.num_tokens for one in before if not one.is_granted)

    def _before(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> list[_Claim]:
        order = claim.order if claim else (self._finish(num_tokens, caller), math.inf)
        return self._claims[: bisect_left(self._claims, order, key=_order)]

    def _finish(self, num_tokens: int, caller: Caller) -> float:
        """Return a request's finish tag, which orders it."""
        large = self.max_tokens() / _LARGE_SHARE
        return self._admitted.start(caller.flow) + min(num_tokens, large)

    def _claim_of(self, num_tokens: int, caller: Caller, content: int) -> _Claim | None:
        """Return the reservation of a previously refused request.

        The same content on another connection counts as the same request until the first connection
        also sends it again.
        """
        by_content = None
        for claim in self._by_content.get((caller.key, content, num_tokens), ()):
            if claim.turn is not None:
                continue
            if claim.caller.connection == caller.connection:
                return claim
            if by_content is None and caller.connection not in claim.former_connections:
                by_content = claim
        if by_content is not None:
            by_content.former_connections.add(by_content.caller.connection)
            by_content.caller = caller
        return by_content

    def _claim(self, num_tokens: int, caller: Caller, content: int) -> _Claim:
        start = self._admitted.start(caller.flow)
        self._num_claims += 1
        order = (self._finish(num_tokens, caller), self._num_claims)
        self._admitted.charge(caller.flow, num_tokens)
        claim = _Claim(caller, caller.flow, content, num_tokens, start, order)
        insort(self._claims, claim, key=_order)
        self._by_content.setdefault(claim.identity, []).append(claim)
        self._num_reserved += num_tokens
        return claim

    def _remove(self, claim: _Claim) -> bool:
        at = bisect_left(self._claims, claim.order, key=_order)
        if at == len(self._claims) or self._claims[at] is not claim:
            return False
        del self._claims[at]
        alike = self._by_content[claim.identity]
        alike.remove(claim)
        if not alike:
            del self._by_content[claim.identity]
        self._num_reserved -= claim.num_tokens
        return True

    def _cancel(self, claim: _Claim) -> None:
        if self._remove(claim):
            self._admitted.charge(claim.flow, -claim.num_tokens)
            self._grant()

    def _lapse(self, claim: _Claim) -> None:
        """Cancel a claim that was granted but not used."""
        if self._due is claim:
            self._due = None
            self._cancel(claim)

    def _expire(self) -> None:
        now = self._now()
        if now < self._next_expiry:
            return
        for claim in [one for one in self._claims if one.expires <= now]:
            self._remove(claim)
            self._admitted.charge(claim.flow, -claim.num_tokens)
        self._next_expiry = min((one.expires for one in self._claims), default=math.inf)

    def _grant(self) -> None:
        """Wake the waiting requests for which there is now capacity."""
        for claim in list(self._claims):
            if (
                claim.turn is not None
                and not claim.turn.done()
                and self._has_capacity(claim.num_tokens, claim.caller, claim)
            ):
                claim.turn.set_result(None)
        self._observe(self.num_queued, self._num_reserved)

    def _overloaded(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> Overloaded:
        before = self._num_before(num_tokens, caller, claim)
        retry_after_s = self.retry_after_s(num_tokens, before)
        if claim is not None:
            claim.expires = self._now() + (1 + _LATE_TIMES) * retry_after_s + _LATE_S
            self._next_expiry = min(self._next_expiry, claim.expires)
        self._observe(self.num_queued, self._num_reserved)
        others = f", {before} are reserved before this request," if before else ""
        return Overloaded(
            f"{self.num_queued} tokens are queued{others} and the limit is {self.max_tokens()}; "
            f"send these {num_tokens} again in {retry_after_s} s",
            retry_after_s=retry_after_s,
        )

    def _change(self, num_tokens: int, flow: str) -> None:
        self._measure()
        self.num_queued += num_tokens
        self._queued_by_flow[flow] = self._queued_by_flow.get(flow, 0) + num_tokens
        if not self._queued_by_flow[flow]:
            del self._queued_by_flow[flow]
        if not self.num_queued:
            self._empty_since = self._now()
        is_busy = self.num_queued >= min(_BUSY_TOKENS, self.max_tokens() / 4) and self._is_ready()
        self._busy_since = self._now() if is_busy else None
        self._observe(self.num_queued, self._num_reserved)

    def _count_done(self, num_tokens: int) -> None:
        """Observe throughput once the completed tokens are about as many as those in progress.

        A large request is counted when it ends; otherwise small concurrent ones would seem to have
        taken all of its time.
        """
        if self._busy_since is not None:
            self._done_tokens += num_tokens
            self._done_s += self._busy_s
            if self._done_tokens >= (self.num_queued - num_tokens) / 2:
                self.throughput.observe(self._done_tokens, self._done_s)
                self._done_tokens, self._done_s = 0, 0.0
        self._busy_s = 0.0

    def _measure(self) -> None:
        """Add the time since the last measurement, if the queue kept the devices busy."""
        now = self._now()
        if self._busy_since is not None:
            self._busy_s += now - self._busy_since
            self._busy_since = now


def _order(claim: _Claim) -> tuple[float, float]:
    return claim.order
