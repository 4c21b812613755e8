"""A request queue that goes through everything that waits for each batch, as a reference."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence

from alarm_models.modeling.inputs import BatchLayout
from alarm_models.modeling.packed.prefix_cache import MIN_SHARED_PREFIX, common_prefix_length
from alarm_service.engine.fair_queueing import INTERNAL, Caller, Usage, VirtualTimes
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.scheduler import QueuedSample, next_batch

WINDOW = 512


class PlainQueue:
    """Batches of samples in a list, chosen as `RequestQueue` is to choose them."""

    def __init__(self, max_batch_tokens: int, now: Callable[[], float]) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._now = now
        self._last_caller = INTERNAL
        self._several_since = -60.0
        self._num_running = 0
        self._waiting: list[QueuedSample] = []
        self._came: dict[tuple[LoadedModel, Caller], int] = {}
        self._models_came: dict[LoadedModel, int] = {}
        self._num_came = 0
        self._models: VirtualTimes[str] = VirtualTimes()
        self._usage: dict[str, Usage] = {}

    def put(self, works: Sequence[QueuedSample]) -> None:
        for work in works:
            self._num_came += 1
            if (work.model, work.caller) not in self._came:
                self._usage_of(work.model.name).begin_to_wait(work.caller)
            self._came.setdefault((work.model, work.caller), self._num_came)
            self._models_came.setdefault(work.model, self._num_came)
            self._waiting.append(work)
            self._note_caller(work.caller)

    def take(self, busy: Container[str]) -> list[QueuedSample]:
        models = [one for one in self._models_came if one.name not in busy]
        if not models:
            return []
        model = min(models, key=self._start_of)
        callers = self._callers_of(model)
        usage = self._usage_of(model.name)
        budget = model.budget or self._max_batch_tokens
        ordered = self._ordered(callers, usage, budget)
        is_alone = self._now() - self._several_since >= 60
        batch = next_batch(ordered, budget, None if is_alone else usage.enough_tokens())
        self._models.serve(model.name)
        usage.callers.serve(batch[0].caller)
        weights = weights_of(list(callers))
        for work in batch:
            work.weight = weights[work.caller]
            work.charged = work.features.num_cost_tokens * usage.seconds_per_token
            usage.callers.charge(work.caller, work.charged * work.weight)
            self._models.charge(model.name, work.charged)
            self._note_caller(work.caller)
        self._num_running += 1
        self._keep(lambda work: work not in batch)
        return batch

    def drop_cancelled(self) -> None:
        self._keep(lambda work: work.is_active())

    def num_waiting(self) -> int:
        return len(self._waiting)

    def record_batch(
        self, batch: Sequence[QueuedSample], num_computed: Sequence[int], seconds: float
    ) -> None:
        total = sum(num_computed)
        self._num_running -= 1
        usage = self._usage_of(batch[0].model.name)
        usage.measure(total, seconds)
        callers = [*self._callers_of(batch[0].model), *(work.caller for work in batch)]
        usage.callers.divide(seconds, len({caller.flow for caller in callers}))
        expected = 0.0
        for work, num_tokens in zip(batch, num_computed, strict=True):
            expected += work.charged
            part = seconds * num_tokens / total if total else 0.0
            usage.callers.charge(work.caller, (part - work.charged) * work.weight)
            work.charged = part
        self._models.charge(batch[0].model.name, seconds - expected)

    def _note_caller(self, caller: Caller) -> None:
        if caller not in (self._last_caller, INTERNAL):
            others = [work for work in self._waiting if work.caller != caller]
            if self._last_caller != INTERNAL and (self._num_running or others):
                self._several_since = self._now()
            self._last_caller = caller

    def _usage_of(self, name: str) -> Usage:
        return self._usage.setdefault(name, Usage())

    def _keep(self, is_kept: Callable[[QueuedSample], bool]) -> None:
        self._waiting = [work for work in self._waiting if is_kept(work)]
        pairs = {(work.model, work.caller) for work in self._waiting}
        models = {model for model, _ in pairs}
        self._came = {pair: at for pair, at in self._came.items() if pair in pairs}
        self._models_came = {one: at for one, at in self._models_came.items() if one in models}

    def _start_of(self, model: LoadedModel) -> tuple[float, float]:
        oldest = min(works[0].since for works in self._callers_of(model).values())
        return self._models.start(model.name), oldest

    def _callers_of(self, model: LoadedModel) -> dict[Caller, list[QueuedSample]]:
        came = [caller for one, caller in self._came if one is model]
        return {
            caller: [one for one in self._waiting if (one.model, one.caller) == (model, caller)]
            for caller in came
        }

    def _ordered(
        self, callers: dict[Caller, list[QueuedSample]], usage: Usage, budget: int
    ) -> list[QueuedSample]:
        weights = weights_of(list(callers))
        turns = {caller: turns_of(works, budget) for caller, works in callers.items()}
        heap = [
            (usage.callers.start(caller), works[0].since, number, caller)
            for number, (caller, works) in enumerate(callers.items())
        ]
        heapq.heapify(heap)
        ordered: list[QueuedSample] = []
        total = 0
        while heap and len(ordered) < WINDOW:
            tag, _, number, caller = heap[0]
            works, cost = next(turns[caller], ([], 0))
            if not works:
                heapq.heappop(heap)
                continue
            ordered += works
            total += cost
            if ordered[0].cost is not BatchLayout.PADDED and total >= 4 * budget:
                break
            tag += cost * usage.seconds_per_token * weights[caller]
            heapq.heapreplace(heap, (tag, works[-1].since, number, caller))
        return [work for work in ordered if work.cost is ordered[0].cost]


def weights_of(callers: Sequence[Caller]) -> dict[Caller, float]:
    """Return the weight of each caller's tokens: connections with one key share its part."""
    num_callers = Counter(caller.key for caller in callers)
    return {caller: float(num_callers[caller.key]) if caller.key else 1.0 for caller in callers}


def turns_of(
    works: Sequence[QueuedSample], max_tokens: int
) -> Iterator[tuple[list[QueuedSample], int]]:
    """Split a caller's samples into turns: neighbors that share a prefix while they fit."""
    turn: list[QueuedSample] = []
    cost = 0
    for work in works:
        if turn and turn[0].cost is work.cost is BatchLayout.PREFIX_SHARED:
            shared = common_prefix_length(turn[0].features.ids, work.features.ids, 0)
            own = len(work.features.ids) - shared
            if shared >= MIN_SHARED_PREFIX and cost + own <= max_tokens:
                turn.append(work)
                cost += own
                continue
        if turn:
            yield turn, cost
        turn, cost = [work], work.features.num_cost_tokens
    if turn:
        yield turn, cost
