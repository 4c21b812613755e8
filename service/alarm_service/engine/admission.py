"""Admission control: which requests the queue accepts, counted in tokens, and in which order."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
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
    def is_waiting(self) -> bool:
        """Whether its request waits in the server."""
        return self.turn is not None and not self.turn.done()


#: Claims in a block: half as many after it is split.
_BLOCK = 128


class _Claims:
    """Claims in order, in blocks with the sums of their tokens.

    Adding, removing and summing do not go through all of them.
    """

    def __init__(self) -> None:
        self._blocks: list[list[_Claim]] = []
        self._num_tokens: list[int] = []
        self._num_claims = 0

    def __len__(self) -> int:
        return self._num_claims

    def __iter__(self) -> Iterator[_Claim]:
        return (claim for block in self._blocks for claim in block)

    def add(self, claim: _Claim) -> None:
        """Add a claim in its place."""
        self._num_claims += 1
        if not self._blocks:
            self._blocks.append([claim])
            self._num_tokens.append(claim.num_tokens)
            return
        at = min(self._block_of(claim.order), len(self._blocks) - 1)
        block = self._blocks[at]
        insort(block, claim, key=_order)
        self._num_tokens[at] += claim.num_tokens
        if len(block) > _BLOCK:
            halves = [block[: _BLOCK // 2], block[_BLOCK // 2 :]]
            self._blocks[at : at + 1] = halves
            self._num_tokens[at : at + 1] = [sum(one.num_tokens for one in half) for half in halves]

    def remove(self, claim: _Claim) -> bool:
        """Remove a claim; return whether it was there."""
        at = self._block_of(claim.order)
        if at == len(self._blocks):
            return False
        block = self._blocks[at]
        index = bisect_left(block, claim.order, key=_order)
        if block[index] is not claim:
            return False
        del block[index]
        self._num_claims -= 1
        self._num_tokens[at] -= claim.num_tokens
        if not block:
            del self._blocks[at], self._num_tokens[at]
        return True

    def before(self, order: tuple[float, float]) -> Iterator[_Claim]:
        """Yield the claims before a place."""
        for claim in self:
            if claim.order >= order:
                return
            yield claim

    def num_tokens_before(self, order: tuple[float, float]) -> int:
        """Return the sum of the tokens of the claims before a place."""
        at = self._block_of(order)
        if at == len(self._blocks):
            return sum(self._num_tokens)
        block = self._blocks[at]
        index = bisect_left(block, order, key=_order)
        return sum(self._num_tokens[:at]) + sum(one.num_tokens for one in block[:index])

    def _block_of(self, order: tuple[float, float]) -> int:
        """Return the first block whose last claim is not before a place."""
        return bisect_left(self._blocks, order, key=_last_order)


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
        #: Queued tokens by flow, and requests that are queued or have a claim.
        self._queued_by_flow: dict[str, int] = {}
        self._num_requests: Counter[str] = Counter()
        #: The claims without capacity; those of them that wait in the server; the granted ones.
        self._claims = _Claims()
        self._waiting = _Claims()
        self._granted: set[_Claim] = set()
        self._num_reserved = self._num_waiting = self._num_granted = 0  # tokens
        #: Heap of the tokens of claims that wait; some no longer do.
        self._sizes: list[tuple[int, float, _Claim]] = []
        #: Claims of refused requests by their identity, then by connection; and a heap of when they
        #: expire, in which some are gone or expire later.
        self._by_content: dict[tuple[str, int, int], dict[str, _Claim]] = {}
        self._expiries: list[tuple[float, float, _Claim]] = []
        self._num_claims = 0
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

    @asynccontextmanager
    async def admit_waiting(
        self, num_tokens: int, caller: Caller = INTERNAL
    ) -> AsyncIterator[None]:
        """Wait for capacity, and occupy ``num_tokens`` of the queue while the block runs.

        Raises `Overloaded` if too many tokens are waiting.
        """
        claim = await self._granted_claim(num_tokens, caller)
        self._remove(claim)
        self._admitted.reach(claim.start)
        with self._occupied(num_tokens, caller.flow):
            yield

    async def _granted_claim(self, num_tokens: int, caller: Caller) -> _Claim:
        """Wait for capacity; return the claim that holds it."""
        self._expire()
        self._admitted.begin_to_wait(caller.flow)
        most = max(_MIN_WAITING_TOKENS, _MAX_WAITING_QUEUES * self._max)
        if self._num_waiting and self._num_waiting + num_tokens > most:
            raise self._overloaded(num_tokens, caller, None)
        claim = self._claim(num_tokens, caller, 0)
        claim.turn = asyncio.get_running_loop().create_future()
        self._num_waiting += num_tokens
        self._waiting.add(claim)
        heapq.heappush(self._sizes, (num_tokens, claim.order[1], claim))
        try:
            self._grant()
            await claim.turn
        except BaseException:
            self._cancel(claim)
            raise
        return claim

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
        self._expire()
        self._admitted.begin_to_wait(caller.flow)
        claim = self._claim_of(num_tokens, caller, content()) if self._claims else None
        if not self._has_capacity(num_tokens, caller, claim):
            if claim is None and len(self._claims) + len(self._granted) < _MAX_RESERVED:
                claim = self._claim(num_tokens, caller, content())
                self._by_content.setdefault(claim.identity, {})[caller.connection] = claim
            raise self._overloaded(num_tokens, caller, claim)
        if claim is None:
            self._admitted.serve(caller.flow)
            self._admitted.charge(caller.flow, num_tokens)
        else:
            self._remove(claim)
            self._admitted.reach(claim.start)
        with self._occupied(num_tokens, caller.flow):
            yield

    @contextmanager
    def _occupied(self, num_tokens: int, flow: str) -> Iterator[None]:
        self._num_requests[flow] += 1
        if self._claims:
            self._admitted.divide(num_tokens, len(self._num_requests))
        self._change(num_tokens, flow)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            self._leave(num_tokens, flow, is_done=is_done)

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

    def _leave(self, num_tokens: int, flow: str, *, is_done: bool) -> None:
        self._measure()
        if is_done:
            self._count_done(num_tokens)
        elif num_tokens > self._done_tokens:
            # An unknown amount of device time was spent on it.
            self._done_tokens, self._done_s, self._busy_s = 0, 0.0, 0.0
        self._expire()
        self._forget_request(flow)
        self._change(-num_tokens, flow)
        if not self.num_queued and not self._claims and not self._granted:
            self._admitted = VirtualTimes()  # nothing is waiting, so all callers start equal
        self._admitted.evict_idle(self._num_requests)
        self._grant()

    def _has_capacity(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> bool:
        level, limit = self.num_queued + self._num_granted, self.max_tokens()
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
        before = self._claims.before(self._order_of(num_tokens, caller, claim))
        return all(one.caller.flow == caller.flow for one in before)

    def _num_before(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> int:
        """Return the tokens reserved ahead of a claim, or ahead of a request without one."""
        return self._claims.num_tokens_before(self._order_of(num_tokens, caller, claim))

    def _order_of(
        self, num_tokens: int, caller: Caller, claim: _Claim | None
    ) -> tuple[float, float]:
        return claim.order if claim else (self._finish(num_tokens, caller), math.inf)

    def _finish(self, num_tokens: int, caller: Caller) -> float:
        """Return a request's finish tag, which orders it."""
        large = self.max_tokens() / _LARGE_SHARE
        return self._admitted.start(caller.flow) + min(num_tokens, large)

    def _claim_of(self, num_tokens: int, caller: Caller, content: int) -> _Claim | None:
        """Return the reservation of a previously refused request.

        The same content on another connection counts as the same request until the first connection
        also sends it again.
        """
        alike = self._by_content.get((caller.key, content, num_tokens), {})
        claim = alike.get(caller.connection)
        if claim is not None:
            return claim
        for claim in alike.values():
            if caller.connection not in claim.former_connections:
                del alike[claim.caller.connection]
                alike[caller.connection] = claim
                claim.former_connections.add(claim.caller.connection)
                claim.caller = caller
                return claim
        return None

    def _claim(self, num_tokens: int, caller: Caller, content: int) -> _Claim:
        start = self._admitted.start(caller.flow)
        self._num_claims += 1
        order = (self._finish(num_tokens, caller), self._num_claims)
        self._admitted.charge(caller.flow, num_tokens)
        claim = _Claim(caller, caller.flow, content, num_tokens, start, order)
        self._claims.add(claim)
        self._num_requests[claim.flow] += 1
        self._num_reserved += num_tokens
        return claim

    def _remove(self, claim: _Claim) -> bool:
        if claim in self._granted:
            self._granted.remove(claim)
            self._num_granted -= claim.num_tokens
        elif not self._claims.remove(claim):
            return False
        self._forget_request(claim.flow)
        self._num_reserved -= claim.num_tokens
        if claim.turn is not None:
            self._num_waiting -= claim.num_tokens
            self._waiting.remove(claim)
            return True
        alike = self._by_content[claim.identity]
        del alike[claim.caller.connection]
        if not alike:
            del self._by_content[claim.identity]
        return True

    def _forget_request(self, flow: str) -> None:
        self._num_requests[flow] -= 1
        if not self._num_requests[flow]:
            del self._num_requests[flow]

    def _cancel(self, claim: _Claim) -> None:
        if self._remove(claim):
            self._admitted.charge(claim.flow, -claim.num_tokens)
            self._grant()

    def _expire(self) -> None:
        while self._expiries and self._expiries[0][0] <= self._now():
            _, number, claim = heapq.heappop(self._expiries)
            if claim.expires > self._now():  # it was refused again
                heapq.heappush(self._expiries, (claim.expires, number, claim))
            elif self._remove(claim):
                self._admitted.charge(claim.flow, -claim.num_tokens)

    def _grant(self) -> None:
        """Wake the waiting requests for which there is now capacity."""
        granted = []
        for claim in self._waiting:
            if claim.turn is None or claim.turn.done():
                continue  # its request was cancelled
            if self._has_capacity(claim.num_tokens, claim.caller, claim):
                claim.turn.set_result(None)
                self._claims.remove(claim)
                self._granted.add(claim)
                self._num_granted += claim.num_tokens
                granted.append(claim)
            elif not self._is_open_to_waiting():
                break
        for claim in granted:
            self._waiting.remove(claim)
        if len(self._sizes) > 2 * len(self._waiting) + _BLOCK:
            self._sizes = [(one.num_tokens, one.order[1], one) for one in self._waiting]
            heapq.heapify(self._sizes)
        self._observe(self.num_queued, self._num_reserved)

    def _is_open_to_waiting(self) -> bool:
        """Whether a waiting request fits into the half of the queue that is open to all.

        Nothing else has capacity behind a request that has none.
        """
        while self._sizes and not self._sizes[0][2].is_waiting:
            heapq.heappop(self._sizes)
        level = self.num_queued + self._num_granted
        return bool(self._sizes) and level + self._sizes[0][0] <= self.max_tokens() / 2

    def _overloaded(self, num_tokens: int, caller: Caller, claim: _Claim | None) -> Overloaded:
        before = self._num_before(num_tokens, caller, claim)
        retry_after_s = self.retry_after_s(num_tokens, before)
        if claim is not None:
            expires = self._now() + (1 + _LATE_TIMES) * retry_after_s + _LATE_S
            if expires < claim.expires:
                heapq.heappush(self._expiries, (expires, claim.order[1], claim))
            claim.expires = expires
            if len(self._expiries) > 2 * len(self._claims) + _BLOCK:
                refused = (one for one in self._claims if one.expires < math.inf)
                self._expiries = [(one.expires, one.order[1], one) for one in refused]
                heapq.heapify(self._expiries)
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


def _last_order(block: Sequence[_Claim]) -> tuple[float, float]:
    return block[-1].order
