"""Fair queueing: pure functions, and a queue on a device with a simulated clock."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_scheduler import M, lengths, model, work

from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.reward_models.base import gather_limited
from alarm_service.engine.fair_queueing import Caller, Usage, VirtualTimes, predicted_s
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.scheduler import (
    Outcome,
    QueuedSample,
    RequestQueue,
    TimedOutSamples,
    WaitingSamples,
    fair_order,
    next_batch,
)

A, B, C = (Caller(connection=f"10.0.0.{number}:1") for number in range(3))


def of(caller: Caller, *num_tokens: int, model: LoadedModel = M) -> list[QueuedSample]:
    """A caller's sample whose cost is its number of tokens."""
    packed = BatchLayout.PACKED
    return [replace(work(one, model=model), caller=caller, cost=packed) for one in num_tokens]


def waiting_of(
    *works: QueuedSample, starts: Mapping[Caller, float] | None = None
) -> WaitingSamples:
    """Samples of callers with these start tags, of which most are 0."""
    times: VirtualTimes[Caller] = VirtualTimes()
    for caller, start in (starts or {}).items():
        times.charge(caller, start)
    waiting = WaitingSamples(times)
    for one in works:
        waiting.append(one)
    return waiting


def test_virtual_times_least_served_flow_is_next() -> None:
    times: VirtualTimes[str] = VirtualTimes()
    served = []
    for _ in range(6):
        flow = min("ab", key=times.start)
        times.serve(flow)
        times.charge(flow, {"a": 1, "b": 2}[flow])
        served.append(flow)
    # a: 0, 1, 2, 3; b: 0, 2, 4: the tags at which each was served.
    assert "".join(served) == "abaaba"


def test_virtual_times_idle_flow_gets_no_credit() -> None:
    times: VirtualTimes[str] = VirtualTimes()
    for _ in range(10):
        times.serve("a")
        times.charge("a", 1)
    assert times.start("b") == 9
    assert times.start("a") == 10


def test_virtual_times_overserved_flow_owes_after_a_pause() -> None:
    times: VirtualTimes[str] = VirtualTimes()
    times.charge("a", 100)
    assert times.is_ahead("a")
    assert not times.is_ahead("b")
    times.reach(60)
    assert (times.start("a"), times.start("b")) == (100, 60)


def test_virtual_times_evict_idle_bounds_the_number_of_flows() -> None:
    times: VirtualTimes[int] = VirtualTimes()
    for flow in range(5000):
        times.charge(flow, 1 + flow)
        times.evict_idle({0})
    assert len(times) <= 2048
    assert times.start(0) == 1


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(20, 200))
def test_virtual_times_backlogged_flows_differ_by_one_service_at_most(
    costs: list[int], num_turns: int
) -> None:
    times: VirtualTimes[int] = VirtualTimes()
    served = [0] * len(costs)
    for _ in range(num_turns):
        flow = min(range(len(costs)), key=times.start)
        times.serve(flow)
        times.charge(flow, costs[flow])
        served[flow] += costs[flow]
        assert max(served) - min(served) <= max(costs) * 2


@pytest.mark.parametrize(
    ("starts", "ordered"),
    [
        ({A: 0, B: 0}, "abbbab"),  # a: 0, 3; b: 0, 1, 2, 3
        ({A: 0, B: 5}, "aababb"),  # a: 0, 3, 6; b: 5, 6, 7
        ({A: 9, B: 0}, "bbbbbb"),
    ],
)
def test_fair_order_follows_device_time(starts: dict[Caller, float], ordered: str) -> None:
    waiting = waiting_of(*of(A, *[3] * 6), *of(B, *[1] * 6), starts=starts)
    found = fair_order(waiting, 1.0, 100)[:6]
    assert "".join("ab"[one.caller == B] for one in found) == ordered


def test_fair_order_connections_of_one_key_share_a_part() -> None:
    one, two = Caller("k", "x:1"), Caller("k", "x:2")
    waiting = waiting_of(*of(one, *[1] * 9), *of(two, *[1] * 9), *of(A, *[1] * 9))
    assert [waiting.weight(caller) for caller in (one, two, A, B)] == [2, 2, 1, 1]
    found = fair_order(waiting, 1.0, 100)[:12]
    assert sum(work.caller == A for work in found) == 6  # half, the other key the other half


def test_fair_order_keeps_a_group_together() -> None:
    def group(caller: Caller, beginning: int) -> list[QueuedSample]:
        ids = (beginning,) * 20
        made = [ModelInput((*ids, own), (), False) for own in range(8)]
        return [
            QueuedSample(
                M,
                one,
                lambda outcome: None,
                lambda: True,
                0,
                BatchLayout.PREFIX_SHARED,
                caller=caller,
            )
            for one in made
        ]

    callers = [Caller(connection=f"10.0.0.1:{number}") for number in range(200)]
    groups = [group(caller, number) for number, caller in enumerate(callers)]
    batch = next_batch(fair_order(waiting_of(*chain(*groups)), 1.0, 100), 100)
    # A group is 20 + 8 tokens: three whole ones, though two hundred callers wait.
    assert [one.caller for one in batch] == [c for c in callers[:3] for _ in range(8)]


def test_next_batch_short_batch_does_not_split_a_group() -> None:
    ids = (1,) * 100
    group = [
        QueuedSample(
            M,
            ModelInput((*ids, own), (), False),
            lambda _: None,
            lambda: True,
            0,
            BatchLayout.PREFIX_SHARED,
        )
        for own in range(16)
    ]
    assert next_batch(group, 1000, enough_tokens=10) == group  # 101 + 15 of 4 * 101


def test_batch_cost_of_several_keys_shares_no_prefix() -> None:
    ids = (1,) * 50
    works = [
        QueuedSample(M, ModelInput(ids, (), False, owner=owner), lambda _: None, lambda: True, 0)
        for owner in ("k", "l")
    ]
    shared = [replace(one, cost=BatchLayout.PREFIX_SHARED) for one in works]
    assert next_batch(shared, 99) == shared[:1]
    assert next_batch(shared, 100) == shared


class Device:
    """Runs a queue's batches one after another on a simulated clock."""

    def __init__(self, tokens_per_s: dict[str, float], max_batch_tokens: int = 1000) -> None:
        self.seconds = 0.0
        self.queue = RequestQueue(max_batch_tokens, now=lambda: self.seconds)
        self._tokens_per_s = tokens_per_s

    def run_one(self) -> list[QueuedSample]:
        batch = self.queue.take()
        assert batch is not None
        num_tokens = [one.features.num_tokens for one in batch]
        took = sum(num_tokens) / self._tokens_per_s[batch[0].model.name]
        self.seconds += took
        self.queue.record_batch(batch, num_tokens, took)
        return batch

    def until(self, is_done: Callable[[], bool]) -> int:
        """Run batches until a condition holds; return how many."""
        for number in range(1000):
            if is_done():
                return number
            self.run_one()
        raise AssertionError("never")


def test_queue_slow_and_fast_model_have_equal_device_time() -> None:
    slow, fast = model("slow"), model("fast")
    device = Device({"slow": 100, "fast": 10_000})
    device.queue.put(of(A, *[100] * 1000, model=slow) + of(B, *[100] * 10_000, model=fast))
    spent = {"slow": 0.0, "fast": 0.0}
    for _ in range(200):
        before = device.seconds
        (name, *_) = {one.model.name for one in device.run_one()}
        spent[name] += device.seconds - before
    # Each within one batch of the slow model: 1000 tokens, 10 s.
    assert abs(spent["slow"] - spent["fast"]) <= 10


def test_queue_fast_model_waits_for_one_batch_of_a_slow_one() -> None:
    slow, fast = model("slow"), model("fast")
    device = Device({"slow": 100, "fast": 10_000})
    device.queue.put(of(A, *[100] * 1000, model=slow))
    device.run_one()
    device.run_one()
    waits = []
    for _ in range(20):
        device.run_one()  # of the slow model: what runs as the caller comes
        single = of(B, 100, model=fast)
        device.queue.put(single)
        waits.append(device.until(lambda one=single[0]: one.charged > 0))
    assert waits == [1] * 20  # next, each time
    # And since there are several callers, a slow batch is cut to half a second, or 256 tokens;
    # every fourth to half of that.
    assert {sum(lengths(device.run_one())) for _ in range(8)} == {100, 200}


def test_queue_caller_on_new_connections_gets_whole_batches() -> None:
    device = Device({"m": 100})
    for caller in (A, B, C):
        device.queue.put(of(caller, *[100] * 20))
        assert [sum(lengths(device.run_one())) for _ in range(2)] == [1000, 1000]


def test_queue_batches_of_generated_texts_stay_whole_for_several_callers() -> None:
    device = Device({"m": 100})
    for caller in (A, B):
        works = of(caller, *[50] * 20)
        for one in works:
            one.features = replace(one.features, max_generated=50)
        device.queue.put(works)
    assert [len(device.run_one()) for _ in range(4)] == [10] * 4


def test_queue_caller_that_comes_while_another_waits_shortens_batches() -> None:
    device = Device({"m": 100})
    device.queue.put(of(A, *[100] * 30))
    device.run_one()
    device.run_one()
    device.queue.put(of(B, *[100] * 30))
    # Two batches measure what a token takes, and the third what any batch takes.
    assert max([sum(lengths(device.run_one())) for _ in range(8)][3:]) <= 256


def test_queue_caller_that_comes_while_another_runs_shortens_batches() -> None:
    device = Device({"m": 100})
    device.queue.put(of(A, 100, 100))
    device.run_one()
    device.queue.put(of(A, 100))
    running = device.queue.take()
    device.queue.put(of(B, *[100] * 30))
    device.queue.record_batch(running or (), [100], 1.0)
    # Two batches measure what a token takes, and the third what any batch takes.
    assert max([sum(lengths(device.run_one())) for _ in range(8)][3:]) <= 256


def usage_of(fixed_s: float, tokens_per_s: float, *sizes: int) -> Usage:
    """Measure batches of these sizes, after a first one that does not count."""
    usage = Usage()
    for size in (1, *sizes):
        usage.measure(size, fixed_s + size / tokens_per_s)
    return usage


@pytest.mark.parametrize(
    ("fixed_s", "tokens_per_s", "enough"),
    [
        (0, 10_000, 5000),  # half a second
        (0, 100, 256),  # at least
        (0.1, 10_000, 4000),  # 0.1 s and 0.4 s
        (0.2, 10_000, 8000),  # a fifth of one second is what every batch takes
        (1, 1000, 4000),
    ],
)
def test_usage_enough_tokens_is_half_a_second_or_bounds_overhead(
    fixed_s: float, tokens_per_s: float, enough: int
) -> None:
    usage = usage_of(fixed_s, tokens_per_s, 500, 1000, 2000, 1000)
    assert usage.enough_tokens() == pytest.approx(enough, rel=1e-3)


def test_usage_enough_tokens_is_none_if_size_makes_no_difference() -> None:
    assert usage_of(1, float("inf"), 500, 1000, 2000, 1000).enough_tokens() is None


def test_usage_enough_tokens_tries_half_the_size() -> None:
    usage = usage_of(1, 1000)
    sizes = []
    for _ in range(4):
        sizes.append(usage.enough_tokens() or 0)
        usage.measure(sizes[-1], 1 + sizes[-1] / 1000)
    assert sizes[:4] == [1024, 1024, 1024, 512]
    assert usage.enough_tokens() == pytest.approx(4000, rel=1e-3)


def test_queue_single_caller_has_full_batches() -> None:
    device = Device({"m": 100})
    device.queue.put(of(A, *[100] * 50))
    assert [sum(lengths(device.run_one())) for _ in range(5)] == [1000] * 5


def test_queue_small_caller_waits_for_one_turn_of_each_large_one() -> None:
    device = Device({"m": 1000})
    device.queue.put([one for number in range(20) for one in of(flood(number), *[100] * 200)])
    for _ in range(10):
        for _ in range(10):
            device.run_one()
        single = of(B, 100)
        device.queue.put(single)
        assert device.until(lambda one=single[0]: one.charged > 0) <= 4
        # 20 floods of 100 tokens a turn, in batches of half a second, 500 tokens.


def test_queue_caller_served_before_is_not_starved_by_new_connections() -> None:
    device = Device({"m": 1000}, max_batch_tokens=100)
    device.queue.put([*of(A, 100), *of(flood(0), 100), *of(flood(1), 100)])
    for _ in range(3):
        device.run_one()
    again = of(A, 100)
    device.queue.put([*of(flood(2), 100), *of(flood(3), 100), *again])
    for number in range(4, 30):
        device.run_one()
        device.queue.put(of(flood(number), 100))
    assert again[0].charged > 0


def test_queue_saturating_callers_have_equal_device_time() -> None:
    device = Device({"m": 1000})
    sizes = {A: 100, B: 10, C: 400}
    device.queue.put([one for caller, size in sizes.items() for one in of(caller, *[size] * 4000)])
    spent = dict.fromkeys(sizes, 0)
    for _ in range(100):
        for one in device.run_one():
            spent[one.caller] += one.features.num_tokens
    # Nobody is ahead of another by more than a batch's worth.
    assert max(spent.values()) - min(spent.values()) <= 1000


def test_queue_charges_computed_tokens() -> None:
    device = Device({"m": 1000}, max_batch_tokens=100)
    device.queue.put(of(A, *[100] * 9) + of(B, *[100] * 9))
    order = []
    for _ in range(9):
        batch = device.queue.take()
        assert batch is not None
        (one,) = batch
        order.append("ab"[one.caller == B])
        num_computed = 100 if one.caller == A else 50  # what it shares was there
        device.queue.record_batch(batch, [num_computed], num_computed / 1000)
    assert order.count("b") == 6


def test_queue_take_skips_busy_models() -> None:
    queue = RequestQueue(100)
    queue.put([work(1, model=model("busy")), work(2, model=model("other"), since=1)])
    assert lengths(queue.take(lambda one: one.name == "busy")) == [2]
    assert lengths(queue.take()) == [1]


def test_queue_refuses_sample_predicted_to_time_out() -> None:
    heard: list[Outcome] = []
    queue = RequestQueue(10_000, forward_timeout_s=4)
    for _ in range(2):
        queue.put(of(A, 2000))
        queue.record_batch(queue.take() or [], [2000], 1.0)  # the first says nothing
    queue.put([replace(one, deliver=heard.append) for one in of(A, 16_000, 16_001)])
    (error,) = heard
    assert getattr(error, "code", None) == "too_long"
    assert "16001 tokens would take about 8 s" in str(error)
    assert queue.num_waiting() == 1


@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "seconds"),
    [(600, None, 6), (600, 100, 12), (1200, 100, 36), (6000, 100, 660)],
)
def test_predicted_s_attention_doubles_cost_at_six_hidden_sizes(
    num_tokens: int, hidden_size: int | None, seconds: float
) -> None:
    assert predicted_s(num_tokens, 100, hidden_size) == pytest.approx(seconds, rel=1e-12)


def test_timed_out_samples_expire_after_an_hour() -> None:
    now = [0.0]
    timed_out = TimedOutSamples(lambda: now[0])
    one, other = of(A, 3, 4)
    loaded = replace_fingerprint(one.model)
    one, other = replace(one, model=loaded), replace(other, model=loaded)
    timed_out.add(one)
    assert one in timed_out
    assert replace(one, caller=B) in timed_out  # whoever sends it
    assert other not in timed_out
    now[0] = 3601.0
    assert one not in timed_out


def flood(number: int) -> Caller:
    return Caller(connection=f"10.0.1.{number}:1")


def replace_fingerprint(loaded: LoadedModel) -> LoadedModel:
    class Printed:
        fingerprint = "f"

    replicas: Sequence[object] = (Printed(),)
    return LoadedModel(loaded.served, replicas)  # type: ignore[arg-type]


async def test_python_function_large_request_lets_others_in_between() -> None:
    places = asyncio.Semaphore(2)  # as a function's processes, which serve in the order of asking
    order: list[str] = []

    async def call(name: str) -> str:
        async with places:
            await asyncio.sleep(0)
            order.append(name)
            return name

    large = asyncio.create_task(gather_limited(call, [f"l{at}" for at in range(50)], 2))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    single = asyncio.create_task(gather_limited(call, ["single"], 2))
    assert await large == [f"l{at}" for at in range(50)]
    assert await single == ["single"]
    assert order.index("single") <= 6
