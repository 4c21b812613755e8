"""torchforge's call, as the RewardActor of its GRPO app (6e77f0b) makes it; and miles'."""

import pickle
from types import SimpleNamespace

import pytest

from alarm_client.errors import SampleFailed
from alarm_client.trainers import miles, torchforge


def test_torchforge_pickled_reward_returns_float_and_has_name(rewards):
    reward = pickle.loads(pickle.dumps(torchforge.AlarmReward(recipe="mine")))
    assert getattr(reward, "__name__", None) == "alarm"
    assert 0.0 + reward("Q", "four<|im_end|>", "A") == 4.0
    assert rewards.samples == [{"prompt": "Q", "completion": "four", "fields": {"reference": "A"}}]
    assert rewards.bodies[0]["recipe"] == "mine"
    reward.source.close()


def test_torchforge_failed_sample_is_raised(rewards):
    rewards.bad = {"four"}
    with pytest.raises(SampleFailed):
        torchforge.AlarmReward()("Q", "four", "A")


async def test_miles_custom_rm_accepts_sample_and_batch(rewards):
    args = SimpleNamespace(reward_key=None)
    sample = SimpleNamespace(prompt="Q", response="four", label="A", metadata={}, index=0)
    assert await miles.custom_rm(args, sample) == 4.0
    assert await miles.custom_rm(args, [sample, sample]) == [4.0, 4.0]
    assert rewards.samples[0]["fields"] == {"reference": "A"}


async def test_miles_invalid_setting_error_names_miles(rewards, monkeypatch):
    monkeypatch.setenv("ALARM_ON_FAILURE", "none")
    with pytest.raises(ValueError, match=r"^miles"):
        await miles.custom_rm(SimpleNamespace(reward_key=None), [])
