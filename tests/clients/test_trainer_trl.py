"""The calls of TRL 1.16.0 and ms-swift 4.6.0, as their sources make them."""

import asyncio
import inspect
import math
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

from alarm_client.errors import SampleFailed, Unauthorized
from alarm_client.trainers import ms_swift, trl
from alarm_client.trainers.trl import AlarmReward, async_reward

PLAIN = {"prompts": ["Q", "Q"], "completions": ["four", "seven!!"]}
CHAT = {
    "prompts": [[{"role": "user", "content": "Q"}]] * 2,
    "completions": [[{"role": "assistant", "content": text}] for text in ("four", "seven!!")],
}


def trl_call(reward, batch):
    """As GRPOTrainer._calculate_rewards: keywords alone, states and loggers among them."""
    metrics, extra = {}, {}
    found = reward(
        **batch,
        completion_ids=[[1, 2], [3]],
        answer=["a", "b"],
        trainer_state=SimpleNamespace(global_step=1),
        log_extra=lambda column, values: extra.setdefault(column, []).extend(values),
        log_metric=lambda name, value: metrics.setdefault(name, []).append(value),
    )
    return found, metrics, extra


@pytest.mark.parametrize("batch", [PLAIN, CHAT])
def test_trl_reward_returns_one_reward_per_completion(rewards, batch):
    found, _, _ = trl_call(AlarmReward(), batch)
    assert found == [4.0, 7.0]
    assert rewards.samples[0]["prompt"] == batch["prompts"][0]
    assert rewards.samples[0]["completion"] == "four"


def test_trl_reward_logs_means_and_values_per_sample(rewards):
    _, metrics, extra = trl_call(AlarmReward("rm"), PLAIN)
    assert metrics["rm/holistic"] == [pytest.approx(0.55)]
    assert metrics["rm/fluency"] == [2.75]
    assert extra["rm/fluency"] == [2.0, 3.5]
    assert all(len(values) == 2 for values in extra.values())


def test_trl_log_keys_on_failure_are_the_same(rewards):
    reward = AlarmReward(on_failure=-1)
    _, good, good_extra = trl_call(reward, PLAIN)
    rewards.status = 500
    found, failed, failed_extra = trl_call(reward, PLAIN)
    assert found == [-1.0, -1.0]
    assert (failed.keys(), failed_extra.keys()) == (good.keys(), good_extra.keys())
    assert failed["alarm/failed"] == [1.0]
    assert math.isnan(failed["alarm/fluency"][0])


def test_trl_aspect_names_are_log_keys_before_first_response(rewards):
    rewards.status = 500
    _, failed, _ = trl_call(AlarmReward(aspect_names="depth,fluency", on_failure=0), PLAIN)
    assert {"alarm/depth", "alarm/fluency"} < failed.keys()


def test_trl_failed_sample_does_not_affect_others(rewards):
    rewards.bad = {"four"}
    assert trl_call(AlarmReward(on_failure="none"), PLAIN)[0] == [None, 7.0]
    assert trl_call(AlarmReward(on_failure=-1), PLAIN)[0] == [-1.0, 7.0]
    with pytest.raises(SampleFailed, match="1 of 2 samples"):
        trl_call(AlarmReward(on_failure="raise"), PLAIN)


def test_trl_wrong_api_key_raises(rewards):
    rewards.status = 401
    with pytest.raises(Unauthorized):
        trl_call(AlarmReward(), PLAIN)


def test_trl_reward_with_model_uses_raw_scores(rewards):
    found, metrics, _ = trl_call(AlarmReward("judge", model="some-rm"), PLAIN)
    assert found == [4.0, 7.0]
    assert rewards.bodies[0]["model"] == "some-rm"
    assert set(metrics) == {"judge/reward", "judge/holistic", "judge/admitted", "judge/failed"}


def test_trl_reward_sends_recipe_and_aspects(rewards):
    trl_call(AlarmReward(recipe="mine", aspects="admitted"), PLAIN)
    assert (rewards.bodies[0]["recipe"], rewards.bodies[0]["aspects"]) == ("mine", "admitted")


def test_trl_part_that_is_not_computed_for_all_samples_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"'wit': set aspects \(or ALARM_ASPECTS\) to 'all'"):
        AlarmReward(part="wit", aspects="admitted")
    monkeypatch.setenv("ALARM_ASPECTS", "admitted")
    with pytest.raises(ValueError, match="only samples past the threshold have the part 'wit'"):
        async_reward(part="wit")
    AlarmReward(part="holistic")


@pytest.mark.parametrize("part", ["holistic", "wit"])
def test_part_of_a_models_scores_is_refused(part):
    with pytest.raises(ValueError, match="model 'some-rm' has none: set recipe"):
        AlarmReward(part=part, model="some-rm")
    with pytest.raises(ValueError, match="model 'some-rm' has none: set recipe"):
        ms_swift.orm("alarm", part, model="some-rm")(args=None)


def test_trl_reward_name_is_configurable(rewards):
    assert (AlarmReward("a").__name__, async_reward("b").__name__) == ("a", "b")


def test_trl_async_reward_is_detected_as_async(rewards):
    reward = async_reward("rm")
    assert inspect.iscoroutinefunction(reward)
    assert asyncio.run(reward(**PLAIN)) == [4.0, 7.0]
    assert asyncio.run(reward(**PLAIN)) == [4.0, 7.0]  # on a new loop


def test_trl_reward_without_loggers_works(rewards):
    reward = async_reward("rm")
    assert asyncio.run(reward(**PLAIN, completion_ids=[[1], [2]], answer=["a", "b"])) == [4, 7]


def score_in_child(pickled):
    reward = pickle.loads(pickled)
    found = asyncio.run(reward(**PLAIN)) if inspect.iscoroutinefunction(reward) else None
    return (reward.__name__, found or reward(**PLAIN))


@pytest.mark.parametrize("make", [AlarmReward, async_reward])
def test_trl_reward_in_use_is_picklable(rewards, make):
    reward = make("rm")
    first = reward(**PLAIN)
    if inspect.iscoroutine(first):
        asyncio.run(first)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(score_in_child, pickle.dumps(reward)).result() == ("rm", [4.0, 7.0])


def test_trl_reward_part_returns_that_part(rewards):
    parts = [AlarmReward(part, part) for part in ("holistic", "fluency", "depth")]
    found = [trl_call(part, PLAIN)[0] for part in parts]
    assert found == [[pytest.approx(0.4), pytest.approx(0.7)], [2.0, 3.5], [None, None]]
    with pytest.raises(ValueError, match=r"no aspect 'wit'; it has \['depth', 'fluency'\]"):
        trl_call(AlarmReward("wit", "wit"), PLAIN)


def test_trl_async_reward_name_may_equal_an_attribute(rewards):
    reward = pickle.loads(pickle.dumps(async_reward("reward")))
    assert (reward.__name__, asyncio.run(reward(**PLAIN))) == ("reward", [4.0, 7.0])


def test_trl_reward_by_dotted_name_is_created(rewards):
    assert trl.reward(**PLAIN) == [4.0, 7.0]


def swift_call(orm, completions, **columns):
    """As ms-swift's compute_rewards_per_func: a new event loop, rows batched into columns."""
    messages = [
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": text}]
        for text in completions
    ]
    row = {"messages": messages, "request_id": ["r"] * len(messages), "trainer_state": None}

    async def gathered():
        return await asyncio.gather(orm(completions, **row, **columns))

    return asyncio.run(gathered())[0]


def test_ms_swift_orm_works_on_a_new_loop_per_call(rewards):
    orm = ms_swift.AlarmORM(args=SimpleNamespace())
    assert asyncio.iscoroutinefunction(orm.__call__)
    for _ in range(2):
        assert swift_call(orm, ["four", "seven!!"], solution=["x", "y"]) == [4.0, 7.0]
    assert rewards.samples[0]["prompt"] == [{"role": "user", "content": "Q"}]


def test_ms_swift_orm_per_aspect_has_its_name(rewards):
    orms = {}
    ms_swift.register(orms, ["fluency", "depth"])
    assert list(orms) == ["alarm", "alarm_fluency", "alarm_depth"]
    assert [made.__name__ for made in orms.values()] == list(orms)  # by which ms-swift logs
    assert swift_call(orms["alarm_fluency"](args=None), ["four"]) == [2.0]
    with pytest.raises(ValueError, match="'depth' was not computed for sample 0"):
        swift_call(orms["alarm_depth"](args=None), ["four"])
    assert rewards.bodies[0]["aspects"] == "all"


def test_ms_swift_orm_failed_sample_gets_group_mean(rewards):
    rewards.bad = {"four"}
    orm = ms_swift.orm("strict")(args=None)
    assert swift_call(orm, ["four", "seven!!", "three"]) == [6.0, 7.0, 5.0]


def test_trl_reward_with_unknown_part_is_refused_by_name(rewards):
    with pytest.raises(ValueError, match=r"no aspect 'wit'; it has \['depth', 'fluency'\]"):
        swift_call(ms_swift.orm("wit", "wit")(args=None), ["four"])


@pytest.mark.parametrize("installed", ["0.18.2", "0.24.0", "0.26.2.post1"])
def test_trl_async_reward_with_old_version_is_refused(installed, rewards, monkeypatch):
    monkeypatch.setattr("alarm_client.trainers.trl.version", lambda _: installed)
    with pytest.raises(ValueError, match=rf"TRL {installed} does not await .* use AlarmReward"):
        async_reward()


@pytest.mark.parametrize("installed", ["0.27.0", "1.16.0", "1.10.0.dev0"])
def test_trl_async_reward_with_current_version_is_created(installed, rewards, monkeypatch):
    monkeypatch.setattr("alarm_client.trainers.trl.version", lambda _: installed)
    assert inspect.iscoroutinefunction(async_reward())
