"""Reward functions of one batch share one scoring call; batches never share one."""

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from reward_server import RewardServer
from test_trainer_trl import PLAIN, swift_call, trl_call

from alarm_client.errors import ServerFailed
from alarm_client.trainers import ms_swift
from alarm_client.trainers._shared_calls import Consumer, SharedCalls
from alarm_client.trainers.trl import AlarmReward, async_reward

PARTS = ("reward", "holistic", "fluency")


def test_shared_calls_parts_of_one_batch_make_one_call(rewards: RewardServer) -> None:
    parts = [AlarmReward(part, part) for part in PARTS]
    found = [trl_call(part, PLAIN)[0] for part in parts]
    assert found[0] == [4, 7]
    assert found[2] == [2, 3.5]
    assert len(rewards.bodies) == 1


def test_shared_calls_equal_next_batch_is_scored_again(rewards: RewardServer) -> None:
    parts = [AlarmReward(part, part) for part in PARTS]
    for step in range(1, 4):
        for part in parts:
            trl_call(part, PLAIN)
        assert len(rewards.bodies) == step


def test_shared_calls_consumer_created_later_makes_its_own_call(rewards: RewardServer) -> None:
    assert trl_call(AlarmReward(), PLAIN)[0] == [4, 7]
    rewards.bad = {"four"}
    assert trl_call(AlarmReward(), PLAIN)[0] == [7, 7]


def test_shared_calls_with_other_settings_are_separate(rewards: RewardServer) -> None:
    for reward in [
        AlarmReward(recipe="a"),
        AlarmReward(recipe="b"),
        AlarmReward(overrides={"threshold": 1}),
    ]:
        trl_call(reward, PLAIN)
    assert [body.get("recipe") for body in rewards.bodies] == ["a", "b", None]
    assert rewards.bodies[2]["overrides"] == {"threshold": 1}


def test_shared_calls_with_other_columns_are_separate(rewards: RewardServer) -> None:
    one, two = AlarmReward("a"), AlarmReward("b")
    one(**PLAIN, solution=["x", "y"])
    two(**PLAIN, solution=["x", "z"])
    assert len(rewards.bodies) == 2


def test_shared_calls_async_parts_make_one_call(rewards: RewardServer) -> None:
    parts = [async_reward(part, part) for part in PARTS]

    async def step() -> list[list[float | None]]:
        return await asyncio.gather(*(part(**PLAIN) for part in parts))

    for number in range(1, 3):  # each on a loop of its own
        assert asyncio.run(step())[2] == [2, 3.5]
        assert len(rewards.bodies) == number


def test_shared_calls_of_groups_that_come_in_parts_join_them_once(rewards: RewardServer) -> None:
    """A second call would join each group with other ids, as if it had more samples."""
    parts = [AlarmReward(part, part, group_size=8) for part in PARTS]
    for part in parts:
        trl_call(part, PLAIN)
    assert len(rewards.bodies) == 1
    trl_call(parts[0], PLAIN)
    ids = [[sample["id"] for sample in body["samples"]] for body in rewards.bodies]
    assert len({*ids[0], *ids[1]}) == 4  # new ones in each call
    async_parts = [async_reward(part, part, group_size=8) for part in PARTS]

    async def step() -> None:
        await asyncio.gather(*(part(**PLAIN) for part in async_parts))

    asyncio.run(step())
    assert len(rewards.bodies) == 3
    assert {sample["group_size"] for body in rewards.bodies for sample in body["samples"]} == {8}


def test_shared_calls_ms_swift_aspects_make_one_call(rewards: RewardServer) -> None:
    orms: dict[str, type[ms_swift.AlarmORM]] = {}
    ms_swift.register(orms, ["fluency"])
    made = [one(args=None) for one in orms.values()]
    for step in range(1, 3):
        assert [swift_call(one, ["four"]) for one in made] == [[4], [2]]
        assert len(rewards.bodies) == step


def test_shared_calls_threads_wait_for_one_call(rewards: RewardServer) -> None:
    parts = [AlarmReward(part, part) for part in PARTS]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda part: trl_call(part, PLAIN)[0], parts))
    assert found[0] == [4, 7]
    assert len(rewards.bodies) == 1


def test_shared_calls_after_unpickling_are_shared(rewards: RewardServer) -> None:
    parts = pickle.loads(pickle.dumps([AlarmReward(part, part) for part in PARTS]))
    for part in parts:
        trl_call(part, PLAIN)
    assert len(rewards.bodies) == 1


def test_shared_calls_failure_fails_its_parts_only(rewards: RewardServer) -> None:
    parts = [AlarmReward(part, part) for part in PARTS]
    rewards.status = 500
    for part in parts:
        with pytest.raises(ServerFailed):
            trl_call(part, PLAIN)
    rewards.status = 200
    assert trl_call(parts[0], PLAIN)[0] == [4, 7]


def test_shared_calls_after_cancellation_waiter_makes_the_call() -> None:
    calls: SharedCalls[str] = SharedCalls()
    first, second = Consumer(), Consumer()

    async def cancelled() -> str:
        started = asyncio.Event()

        async def never() -> str:
            started.set()
            await asyncio.Event().wait()
            return "never"

        async def own() -> str:
            return "own"

        asking = asyncio.create_task(calls.aresult(first, "key", never))
        await started.wait()
        waiting = asyncio.create_task(calls.aresult(second, "key", own))
        await asyncio.sleep(0)
        asking.cancel()
        return await waiting

    assert asyncio.run(cancelled()) == "own"


def test_shared_calls_after_ten_minutes_are_separate() -> None:
    now = [0.0]
    calls: SharedCalls[float] = SharedCalls(now=lambda: now[0])
    first, second, third = Consumer(), Consumer(), Consumer()
    assert calls.result(first, "key", lambda: now[0]) == 0
    now[0] = 599.0
    assert calls.result(second, "key", lambda: now[0]) == 0
    now[0] = 601.0
    assert calls.result(third, "key", lambda: now[0]) == 601


def test_shared_calls_of_one_consumer_in_two_threads_are_separate() -> None:
    calls: SharedCalls[int] = SharedCalls()
    consumer = Consumer()
    both = threading.Barrier(2, timeout=60)
    made = []

    def make() -> int:
        both.wait()  # each makes its own, or this would time out
        made.append(1)
        return len(made)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: calls.result(consumer, "key", make), range(2)))
    assert len(made) == 2
