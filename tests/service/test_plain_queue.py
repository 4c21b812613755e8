"""`RequestQueue` takes the same batches as a queue that goes through all samples for each."""

import random
import sys
from dataclasses import replace
from types import FrameType

import pytest
from plain_queue import PlainQueue
from test_scheduler import model, work

from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_service.engine.fair_queueing import INTERNAL, Caller
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.scheduler import QueuedSample, RequestQueue

CALLERS = [
    *(Caller(connection=str(number)) for number in range(5)),
    *(Caller("k", str(number)) for number in range(3)),
    Caller("l", "0"),
    INTERNAL,
]
#: Two of one name, as while a recipe is reloaded.
MODELS = [model("a"), model("a", 150), model("b"), model("c", 60)]
BUDGET = 200


class Both:
    """Gives equal samples to both queues, and compares what they take."""

    def __init__(self, rng: random.Random) -> None:
        self.seconds = 0.0
        self._rng = rng
        self._queue = RequestQueue(BUDGET, now=lambda: self.seconds)
        self._plain = PlainQueue(BUDGET, now=lambda: self.seconds)
        self._calls: list[tuple[LoadedModel, Caller]] = []
        self._cancelled: set[int] = set()
        self._running: list[tuple[list[QueuedSample], list[QueuedSample]]] = []
        self.num_taken = 0

    def put(self) -> None:
        rng, call = self._rng, len(self._calls)
        self._calls.append((rng.choice(MODELS), rng.choice(CALLERS)))
        layout = rng.choices(list(BatchLayout), [1, 3, 3, 1])[0]
        works = [self._work(call, layout) for _ in range(rng.randint(1, 8))]
        self._queue.put(works)
        self._plain.put([replace(one) for one in works])

    def cancel(self) -> None:
        call = self._rng.randrange(len(self._calls))
        self._cancelled.add(call)
        self._queue.drop_cancelled(*self._calls[call])
        self._plain.drop_cancelled()

    def take(self) -> None:
        busy = self._rng.choice([(), (), ("a",), ("b", "c")])
        plain = self._plain.take(busy)
        batch = (self._queue.take(lambda one: one.name in busy) or []) if plain else []
        assert [_facts(one) for one in batch] == [_facts(one) for one in plain]
        assert self._queue.num_waiting() == self._plain.num_waiting()
        if batch:
            self._running.append((batch, plain))
            self.num_taken += len(batch)

    def record(self) -> None:
        if self._running:
            batch, plain = self._running.pop(self._rng.randrange(len(self._running)))
            num_computed = [self._rng.randint(0, one.features.num_tokens) for one in batch]
            seconds = self._rng.choice([0.0, 0.01, self._rng.random()])
            self._queue.record_batch(batch, num_computed, seconds)
            self._plain.record_batch(plain, num_computed, seconds)

    def wait(self) -> None:
        self.seconds += self._rng.choice([0.5, 61.0])

    def _work(self, call: int, layout: BatchLayout) -> QueuedSample:
        loaded, caller = self._calls[call]
        ids = (self._rng.randint(1, 3),) * 20 + tuple(range(self._rng.randint(0, 40)))
        features = ModelInput(ids, (), False, owner=caller.key)
        # Samples of batches that failed come again, with the time when they first came.
        since = self._rng.choice([self.seconds, self.seconds, 0.0])
        return QueuedSample(
            loaded,
            features,
            lambda outcome: None,
            lambda: call not in self._cancelled,
            since,
            layout,
            caller=caller,
        )


def _facts(work: QueuedSample) -> tuple[object, ...]:
    # The features are the same object in both queues.
    return id(work.features), id(work.model), work.charged, work.weight


@pytest.mark.parametrize("seed", range(4))
def test_queue_takes_the_batches_of_a_plain_queue(seed: int) -> None:
    rng = random.Random(seed)
    both = Both(rng)
    both.put()
    steps = [both.put, both.take, both.record, both.cancel, both.wait]
    for _ in range(300):
        rng.choices(steps, [6, 5, 4, 1, 0.3])[0]()
    assert both.num_taken > 100


def count_calls(num_samples: int, num_callers: int) -> int:
    """Count the function calls that it takes to have all samples of a queue, one a batch."""
    queue = RequestQueue(BUDGET)
    callers = [Caller(connection=str(number)) for number in range(num_callers)]
    queue.put(
        replace(work(9), cost=BatchLayout.SINGLE, caller=callers[number % num_callers])
        for number in range(num_samples)
    )
    num_calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        while queue.num_waiting():
            batch = queue.take() or []
            queue.record_batch(batch, [9], 0.001)
    finally:
        sys.setprofile(None)
    return num_calls


@pytest.mark.parametrize("samples_per_caller", [1, 8, 10_000])
def test_queue_choosing_of_waiting_samples_takes_linear_work(samples_per_caller: int) -> None:
    few, many = (count_calls(num, -(-num // samples_per_caller)) for num in (100, 400))
    assert many <= 4.2 * few
