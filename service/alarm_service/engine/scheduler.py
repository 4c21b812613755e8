"""The scheduler: RequestQueue, and the batching policy that selects the next batch from it."""

from __future__ import annotations

import hashlib
import heapq
import threading
import time
from bisect import bisect_left, insort
from collections import ChainMap, Counter, OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from opentelemetry.trace import INVALID_SPAN, Span

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.packed.prefix_cache import MIN_SHARED_PREFIX, common_prefix_length
from alarm_models.types import Score
from alarm_service.engine.fair_queueing import (
    INTERNAL,
    Caller,
    Turn,
    TurnOrder,
    Usage,
    VirtualTimes,
    predicted_s,
)
from alarm_service.engine.model_set import LoadedModel
from alarm_service.errors import ServiceError

__all__ = [
    "Companion",
    "Outcome",
    "QueuedSample",
    "RequestQueue",
    "TimedOut",
    "TimedOutSamples",
    "WaitingSamples",
    "fair_order",
    "next_batch",
]


class TimedOut(SampleError):
    """A sample's forward pass timed out or killed its thread; it is not retried."""


#: The result of one sample at one model.
Outcome = Score | SampleError | ServiceError


@dataclass(frozen=True, eq=False, slots=True)
class Companion:
    """Another model with the same base and tokens, which shares a queued sample's forward pass.

    ``deliver`` is called with its outcome before the sample's own, but not if the pass fails.
    """

    model: LoadedModel
    features: ModelInput
    deliver: Callable[[Score | SampleError], None]


@dataclass(eq=False, slots=True)
class QueuedSample:
    """One prepared sample that waits for a model's forward pass.

    ``deliver`` is called with the outcome, on any thread; ``is_active`` is false once the caller
    has disconnected. ``since`` is a monotonic time in seconds, ``cost`` the model's batch layout,
    ``span`` the request's tracing span. ``charged`` is the device time in seconds that its
    ``caller`` was charged when it was batched, and ``weight`` what a second of it costs that
    caller. With ``runs_apart`` its token sequences run one after another.
    """

    model: LoadedModel
    features: ModelInput
    deliver: Callable[[Outcome], None]
    is_active: Callable[[], bool]
    since: float
    cost: BatchLayout = BatchLayout.PADDED
    span: Span = INVALID_SPAN
    caller: Caller = INTERNAL
    charged: float = 0.0
    weight: float = 1.0
    companions: tuple[Companion, ...] = ()
    runs_apart: bool = False


#: Maximum number of queued samples considered for a batch.
_WINDOW = 512

#: Number of batches considered at once if samples are ordered by turn, not by length.
_WINDOW_BATCHES = 4

#: A short batch may still cost this many times its first sample if the others share its prefix:
#: in several batches the prefix would be computed several times.
_TIMES_FIRST = 4


class WaitingSamples:
    """One model's waiting samples by caller, with the callers in the order of their turns.

    ``times`` has the callers' start tags. `reorder` must be called after each change of one, and
    for the callers of samples that were removed. Adding and removing a sample take constant time,
    but for a caller's place in a sorted list.
    """

    def __init__(self, times: VirtualTimes[Caller]) -> None:
        #: Linked lists, from which samples are removed in any order.
        self._works: dict[Caller, OrderedDict[QueuedSample, None]] = {}
        self._order: TurnOrder[Caller, Caller] = TurnOrder(times, lambda caller: caller)
        #: All callers' oldest samples, sorted.
        self._oldest: list[tuple[float, int]] = []
        self._num_of_key: Counter[str] = Counter()
        self._num_samples = 0

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._num_samples

    @property
    def callers(self) -> dict[Caller, OrderedDict[QueuedSample, None]]:
        """The callers, each with its samples in order."""
        return self._works

    @property
    def num_flows(self) -> int:
        """The number of callers; connections with one key are one."""
        num_keys = len(self._num_of_key) - ("" in self._num_of_key)
        return self._num_of_key[""] + num_keys

    def has_flow(self, caller: Caller) -> bool:
        """Whether a caller, or another connection with its key, has samples."""
        return caller.key in self._num_of_key if caller.key else caller in self._works

    @property
    def oldest(self) -> float:
        """The time since when a sample has been waiting that is the first of its caller."""
        return self._oldest[0][0]

    def weight(self, caller: Caller) -> float:
        """Return the weight of a token: connections with one key share its part."""
        return float(self._num_of_key[caller.key]) if caller.key else 1.0

    def append(self, work: QueuedSample) -> None:
        """Add a sample after the others of its caller."""
        works = self._works.setdefault(work.caller, OrderedDict())
        works[work] = None
        self._num_samples += 1
        if len(works) == 1:
            self._num_of_key[work.caller.key] += 1
            self._place(work.caller)

    def remove(self, works: Iterable[QueuedSample]) -> None:
        """Remove samples that are waiting; their callers keep their places until `reorder`."""
        for work in works:
            del self._works[work.caller][work]
            self._num_samples -= 1

    def reorder(self, caller: Caller) -> None:
        """Put a caller into its place after its tag or its samples have changed."""
        turn = self._order.get(caller)
        if turn is None:
            return
        del self._oldest[bisect_left(self._oldest, (turn.since, turn.number))]
        if self._works[caller]:
            self._place(caller)
            return
        self._order.remove(caller)
        del self._works[caller]
        self._num_of_key[caller.key] -= 1
        if not self._num_of_key[caller.key]:
            del self._num_of_key[caller.key]

    def turns(self) -> Iterator[Turn[Caller]]:
        """Yield the callers' turns in order, with their tags of now."""
        return iter(self._order)

    def _place(self, caller: Caller) -> None:
        turn = self._order.place(caller, next(iter(self._works[caller])).since)
        insort(self._oldest, (turn.since, turn.number))


def fair_order(
    waiting: WaitingSamples, seconds_per_token: float, max_tokens: int
) -> list[QueuedSample]:
    """Order one model's samples by fair queueing of callers, as many as a batch considers.

    Each caller's own samples keep their order. The caller with the smallest start tag has the next
    turn, which advances its tag by the predicted device time; samples that
    share a prefix are one turn, so that a group is not split.
    """
    upcoming = waiting.turns()
    following = next(upcoming, None)
    turns: dict[Caller, Iterator[tuple[list[QueuedSample], int]]] = {}
    heap: list[Turn[Caller]] = []  # of the callers that are known to come before those to follow
    ordered: list[QueuedSample] = []
    total = 0
    while len(ordered) < _WINDOW:
        if following is not None and (not heap or following < heap[0]):
            heapq.heappush(heap, following)
            caller = following.waiting
            turns[caller] = _turns(waiting.callers[caller], max_tokens)
            following = next(upcoming, None)
        if not heap:
            break
        tag, _, number, caller = heap[0]
        works, cost = next(turns[caller], ((), 0))
        if not works:
            heapq.heappop(heap)
            continue
        ordered += works
        total += cost
        if ordered[0].cost is BatchLayout.SINGLE:
            break
        if ordered[0].cost is not BatchLayout.PADDED and total >= _WINDOW_BATCHES * max_tokens:
            break
        tag += cost * seconds_per_token * waiting.weight(caller)
        heapq.heapreplace(heap, Turn(tag, works[-1].since, number, caller))
    return [work for work in ordered if work.cost is ordered[0].cost]


def _turns(
    works: Iterable[QueuedSample], max_tokens: int
) -> Iterator[tuple[list[QueuedSample], int]]:
    """Split a caller's samples into turns, each with its cost in tokens."""
    turn: list[QueuedSample] = []
    cost = 0
    for work in works:
        if turn and _shares_prefix(turn[0], work):
            own = _own_tokens(turn[0], work)
            if cost + own <= max_tokens and len(turn) < _WINDOW:
                turn.append(work)
                cost += own
                continue
        if turn:
            yield turn, cost
        turn, cost = [work], work.features.num_cost_tokens
    if turn:
        yield turn, cost


def _shares_prefix(one: QueuedSample, other: QueuedSample) -> bool:
    return (
        one.cost is BatchLayout.PREFIX_SHARED
        and other.cost is BatchLayout.PREFIX_SHARED
        and _prefix_key(one) == _prefix_key(other)
    )


def _prefix_key(work: QueuedSample) -> tuple[str, tuple[int, ...]]:
    return work.features.owner, work.features.ids[:MIN_SHARED_PREFIX]


def _own_tokens(first: QueuedSample, work: QueuedSample) -> int:
    """Count the tokens that a sample adds to one that shares its prefix."""
    if work.features.num_shared:  # its sequences begin alike: one of them stands for all
        shared = common_prefix_length(first.features.ids, work.features.ids, 0)
        shared = shared if shared >= MIN_SHARED_PREFIX else 0
        return work.features.num_cost_tokens - shared
    before = first.features.ids_of_sequences
    num_own = 0
    for ids in work.features.ids_of_sequences:
        shared = max(common_prefix_length(one, ids, 0) for one in before)
        num_own += len(ids) - (shared if shared >= MIN_SHARED_PREFIX else 0)
    return num_own


def next_batch(
    waiting: Sequence[QueuedSample], max_tokens: int, enough_tokens: int | None = None
) -> list[QueuedSample]:
    """Select one model's next batch from its queued samples, which are in order.

    The first sample is always included, even if it alone costs more than ``max_tokens``; others are
    added while they fit the budget, by the model's batch layout. ``enough_tokens`` keeps a batch
    shorter, except that samples with the prefix of the first may cost up to four times as much as
    it does.
    """
    window = waiting[:_WINDOW]
    enough = max_tokens if enough_tokens is None else min(enough_tokens, max_tokens)
    match waiting[0].cost:
        case BatchLayout.SINGLE:
            return [waiting[0]]
        case BatchLayout.PADDED:
            return _batch_by_length(window, enough)
        case BatchLayout.PACKED:
            return _batch_first_fit(window, enough)
        case BatchLayout.PREFIX_SHARED:
            least = min(_TIMES_FIRST * waiting[0].features.num_cost_tokens, max_tokens)
            return _batch_by_prefix(window, max(enough, least))


def _batch_by_length(waiting: Sequence[QueuedSample], max_tokens: int) -> list[QueuedSample]:
    """Take the first sample and those closest in length: the cost is the longest times the size."""
    oldest = waiting[0]
    by_length = sorted(waiting, key=lambda work: work.features.num_padded_tokens)
    low = high = next(index for index, work in enumerate(by_length) if work is oldest)
    while True:
        shorter = by_length[low - 1] if low > 0 else None
        longer = by_length[high + 1] if high + 1 < len(by_length) else None
        longest = by_length[high].features.num_padded_tokens
        num_next = high - low + 2
        # Shorter ones first, since they never add padding.
        if shorter is not None and longest * num_next <= max_tokens:
            low -= 1
        elif longer is not None and longer.features.num_padded_tokens * num_next <= max_tokens:
            high += 1
        else:
            return by_length[low : high + 1]


def _batch_first_fit(waiting: Sequence[QueuedSample], max_tokens: int) -> list[QueuedSample]:
    """Take samples in order, skipping those that no longer fit."""
    batch = [waiting[0]]
    left = max_tokens - waiting[0].features.num_padded_tokens
    for work in waiting[1:]:
        if work.features.num_padded_tokens <= left:
            batch.append(work)
            left -= work.features.num_padded_tokens
    return batch


def _batch_by_prefix(waiting: Sequence[QueuedSample], max_tokens: int) -> list[QueuedSample]:
    """Take the first sample and those that share its prefix, which is computed once.

    Other groups follow in the order of their first sample, each only if all of it fits, since a
    split group would compute its prefix twice.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[tuple[QueuedSample, int]]] = {}
    for work in waiting:
        group = groups.setdefault(_prefix_key(work), [])
        cost = _own_tokens(group[0][0], work) if group else work.features.num_cost_tokens
        group.append((work, cost))
    first, *others = groups.values()
    batch, left = [first[0][0]], max_tokens - first[0][1]
    for work, cost in first[1:]:
        if cost <= left:
            batch.append(work)
            left -= cost
    for group in others:
        whole = sum(cost for _, cost in group)
        if whole <= left:
            batch.extend(work for work, _ in group)
            left -= whole
    return batch


#: Maximum number of remembered timed-out samples, and for how long they are remembered.
_MAX_TIMED_OUT = 1024
_TIMED_OUT_S = 3600.0


class TimedOutSamples:
    """Samples whose forward pass timed out, by model, so that they are not run again."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._since: OrderedDict[bytes, float] = OrderedDict()

    def add(self, work: QueuedSample) -> None:
        """Add a sample; it is forgotten after an hour, or if there are too many newer ones."""
        self._since[_digest(work.model, work.features)] = self._now()
        while len(self._since) > _MAX_TIMED_OUT:
            self._since.popitem(last=False)

    def __contains__(self, work: QueuedSample) -> bool:
        """Return whether a sample timed out before."""
        if not self._since:
            return False
        since = self._since.get(_digest(work.model, work.features))
        return since is not None and self._now() - since < _TIMED_OUT_S


def _digest(model: LoadedModel, features: ModelInput) -> bytes:
    content = (model.fingerprint, features.sequences)
    return hashlib.blake2b(repr(content).encode(), digest_size=16).digest()


#: Seconds after the last change of caller during which there count as several callers.
_SEVERAL_S = 60.0

#: A sample is refused if it is predicted to take this many times the limit: predictions are rough,
#: and a running pass is timed anyway.
_REFUSED_TIMES = 2.0


@dataclass(slots=True)
class RequestQueue:
    """Queued samples by model and caller, from which device workers take batches.

    Models get fair shares of measured device time, and so do the callers of a model.
    ``forward_timeout_s`` (0: none) limits a forward pass: samples that timed out before, or are
    predicted to, fail at once.
    """

    #: The token budget of a batch for models without a measured one.
    max_batch_tokens: int
    forward_timeout_s: float = 0.0
    now: Callable[[], float] = time.monotonic
    timed_out: TimedOutSamples = field(default_factory=TimedOutSamples)
    _queues: dict[LoadedModel, WaitingSamples] = field(default_factory=dict)
    #: The models in `_queues`, by name: several while a recipe is reloaded.
    _by_name: dict[str, list[LoadedModel]] = field(default_factory=dict)
    _models: VirtualTimes[str] = field(default_factory=VirtualTimes)
    _order: TurnOrder[LoadedModel, str] = field(init=False)
    _num_waiting: int = 0
    _usage: dict[str, Usage] = field(default_factory=dict)
    _last_caller: Caller = INTERNAL
    _several_since: float = -_SEVERAL_S
    _num_running: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: ServiceError | None = None

    def __post_init__(self) -> None:
        """Order the models by their start tags."""
        self._order = TurnOrder(self._models, lambda model: model.name)

    def put(self, works: Iterable[QueuedSample]) -> None:
        """Queue samples; after `close`, each fails immediately with its reason."""
        works = list(works)
        refused: list[tuple[QueuedSample, ServiceError | SampleError]] = []
        with self._changed:
            changed: dict[LoadedModel, None] = {}
            for work in works:
                reason = self._closed or self._refusal(work)
                if reason is not None:
                    refused.append((work, reason))
                elif work.is_active():
                    self._add(work)
                    changed[work.model] = None
            for model in changed:
                self._order.place(model, self._queues[model].oldest)
            self._changed.notify()
        for work, reason in refused:
            work.deliver(reason)

    def take(
        self, is_busy: Callable[[LoadedModel], bool] = lambda _: False
    ) -> list[QueuedSample] | None:
        """Wait for samples and take a batch of one model by fair queueing; None after `close`.

        Models that are busy are skipped.
        """
        with self._changed:
            while True:
                for turn in self._order:
                    if not is_busy(turn.waiting):
                        return self._take(turn.waiting)
                if self._closed is not None:
                    return None
                self._changed.wait()

    def drop_cancelled(self, model: LoadedModel, caller: Caller) -> None:
        """Drop a caller's queued samples that are no longer wanted; call it once they are not."""
        with self._changed:
            queue = self._queues.get(model)
            if queue is None:
                return
            works = [work for work in queue.callers.get(caller, ()) if not work.is_active()]
            queue.remove(works)
            self._num_waiting -= len(works)
            self._reorder(model.name, works)

    def wake(self) -> None:
        """Wake waiting workers, since the set of busy models has changed."""
        with self._changed:
            self._changed.notify_all()

    def record_batch(
        self, batch: Sequence[QueuedSample], num_computed: Sequence[int], seconds: float
    ) -> None:
        """Charge callers and model the measured time of a batch instead of the predicted one."""
        total = sum(num_computed)
        name = batch[0].model.name
        with self._changed:
            self._num_running = max(self._num_running - 1, 0)
            usage = self._usage_of(name)
            usage.measure(total, seconds)
            usage.callers.divide(seconds, self._num_sharing(batch))
            expected = 0.0
            for work, num_tokens in zip(batch, num_computed, strict=True):
                expected += work.charged
                part = seconds * num_tokens / total if total else 0.0
                usage.callers.charge(work.caller, (part - work.charged) * work.weight)
                work.charged = part
            self._models.charge(name, seconds - expected)
            self._reorder(name, batch)

    def _num_sharing(self, batch: Sequence[QueuedSample]) -> int:
        """Count the callers with samples in a batch or waiting for its model; a key is one."""
        queue = self._queues.get(batch[0].model)
        callers = {work.caller.flow: work.caller for work in batch}
        if queue is None:
            return len(callers)
        return queue.num_flows + sum(not queue.has_flow(one) for one in callers.values())

    def close(self, reason: ServiceError) -> None:
        """Refuse further samples; queued ones fail with the reason."""
        with self._changed:
            self._closed = self._closed or reason
            left = [
                work
                for queue in self._queues.values()
                for works in queue.callers.values()
                for work in works
            ]
            for model in list(self._queues):
                self._drop(model)
            self._num_waiting = 0
            self._changed.notify_all()
        for work in left:
            work.deliver(reason)

    def num_waiting(self) -> int:
        """Return the number of queued samples."""
        with self._changed:
            return self._num_waiting

    def num_callers(self) -> int:
        """Return the number of callers with queued samples."""
        with self._changed:
            return len({caller for queue in self._queues.values() for caller in queue.callers})

    def tokens_per_s(self, model: str) -> float:
        """Return the recent throughput of a model in tokens per second; 0 before it is measured."""
        with self._changed:
            return self._usage_of(model).tokens_per_s

    def _add(self, work: QueuedSample) -> None:
        queue = self._queues.get(work.model)
        if queue is None:
            times = self._usage_of(work.model.name).callers
            queue = self._queues[work.model] = WaitingSamples(times)
            self._by_name.setdefault(work.model.name, []).append(work.model)
        if work.caller not in queue.callers:
            self._usage_of(work.model.name).begin_to_wait(work.caller)
        queue.append(work)
        self._num_waiting += 1
        self._note_caller(work.caller)

    def _note_caller(self, caller: Caller) -> None:
        """Update whether there are several callers, given one that sends or is served.

        One that comes while nothing of another's is queued or running may be the same one over a
        new connection.
        """
        if caller not in (self._last_caller, INTERNAL):
            if self._last_caller != INTERNAL and self._has_work_of_others(caller):
                self._several_since = self.now()
            self._last_caller = caller

    def _has_work_of_others(self, caller: Caller) -> bool:
        return self._num_running > 0 or any(
            other != caller for queue in self._queues.values() for other in queue.callers
        )

    def _refusal(self, work: QueuedSample) -> SampleError | None:
        if work in self.timed_out:
            return TimedOut(
                "model_failed",
                f"model {work.model.name!r} timed out on this sample before; "
                "it is not run again: do not send it again",
            )
        best = self._usage_of(work.model.name).best_tokens_per_s
        # A model that generates text takes a pass per token, each of which has the time limit.
        if not self.forward_timeout_s or not best or work.features.max_generated:
            return None
        num_tokens = work.features.num_cost_tokens
        seconds = predicted_s(num_tokens, best, work.model.hidden_size)
        if seconds <= _REFUSED_TIMES * self.forward_timeout_s:
            return None
        return SampleError(
            "too_long",
            f"the sample's {num_tokens} tokens would take about {seconds:.0f} s, and one forward "
            f"pass may take {self.forward_timeout_s:g} s (--forward-timeout-s): shorten it, or "
            "set the model's max_tokens",
        )

    def _take(self, model: LoadedModel) -> list[QueuedSample]:
        queue = self._queues[model]
        usage = self._usage_of(model.name)
        budget = model.budget or self.max_batch_tokens
        ordered = fair_order(queue, usage.seconds_per_token, budget)
        # A batch of generated texts takes as long as its longest one, however many there are.
        is_generated = ordered[0].features.max_generated > 0
        enough = None if is_generated else self._enough_tokens(usage)
        batch = next_batch(ordered, budget, enough)
        self._models.serve(model.name)
        usage.callers.serve(batch[0].caller)
        for work in batch:
            work.weight = queue.weight(work.caller)
            work.charged = work.features.num_cost_tokens * usage.seconds_per_token
            usage.callers.charge(work.caller, work.charged * work.weight)
            self._models.charge(model.name, work.charged)
            self._note_caller(work.caller)
        self._num_running += 1
        queue.remove(batch)
        self._num_waiting -= len(batch)
        self._reorder(model.name, batch)
        if self._queues:
            self._changed.notify()  # for another device
        usage.callers.evict_idle(self._waiting_callers(model.name))
        return batch

    def _reorder(self, name: str, batch: Sequence[QueuedSample]) -> None:
        """Put the models of one name, and the callers of a batch, into their places.

        Models and callers of which no sample is left are dropped.
        """
        callers = dict.fromkeys(work.caller for work in batch)
        for model in tuple(self._by_name.get(name, ())):
            queue = self._queues[model]
            for caller in callers:
                queue.reorder(caller)
            if queue:
                self._order.place(model, queue.oldest)
            else:
                self._drop(model)

    def _drop(self, model: LoadedModel) -> None:
        del self._queues[model]
        self._order.remove(model)
        alike = self._by_name[model.name]
        alike.remove(model)
        if not alike:
            del self._by_name[model.name]

    def _waiting_callers(self, name: str) -> Container[Caller]:
        return ChainMap(*(self._queues[model].callers for model in self._by_name.get(name, ())))

    def _enough_tokens(self, usage: Usage) -> int | None:
        """Return the tokens of a short batch while there are several callers; else None."""
        is_alone = self.now() - self._several_since >= _SEVERAL_S
        return None if is_alone else usage.enough_tokens()

    def _usage_of(self, model: str) -> Usage:
        return self._usage.setdefault(model, Usage())
