"""EasyR1's calls, as `verl/workers/reward/function.py` of b44b311 makes them."""

import importlib.util
import json
import math
from functools import partial

import numpy as np
import pytest

from alarm_client.errors import SampleFailed
from alarm_client.trainers import easyr1
from alarm_client.trainers.__main__ import FILES

EMMA = {"prompt": "Who wrote Emma?", "reference": "Jane Austen", "year": 1815, "none": None}


def given(response, truth):
    return {"response": response, "response_length": 4, "ground_truth": truth}


def test_easyr1_file_called_with_a_batch_returns_rewards(rewards):
    spec = importlib.util.spec_from_file_location("custom_reward_fn", FILES / "alarm_easyr1.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.REWARD_NAME, module.REWARD_TYPE) == ("alarm", "batch")
    reward_fn = partial(module.compute_score, recipe="mine")
    column = np.array([EMMA, json.dumps(EMMA)], dtype=object)
    found = reward_fn([given("four<|im_end|>", column[0]), given("seven!!", column[1])])
    assert [one["overall"] for one in found] == [4.0, 7.0]
    assert found[0]["alarm_fluency"] == 2.0
    assert rewards.bodies[0]["recipe"] == "mine"
    first, second = rewards.samples
    assert first["prompt"] == "Who wrote Emma?"
    assert first["fields"] == {"reference": "Jane Austen", "year": "1815"}
    assert first["completion"] == "four"
    assert second["fields"] == first["fields"]
    assert first["group"] == second["group"]


def test_easyr1_components_omit_nan(rewards):
    (found,) = easyr1.compute_score([given("four", EMMA)])
    assert "alarm_depth" not in found  # an aspect that was not computed
    assert not any(math.isnan(value) for value in found.values())


def test_easyr1_conversation_is_the_prompt_and_groups_by_prompt(rewards):
    chat = [{"role": "user", "content": "Q"}]
    column = np.array([{"prompt": np.array(chat, dtype=object)}, {"prompt": "R"}], dtype=object)
    easyr1.compute_score([given("a", truth) for truth in column])
    assert [one["prompt"] for one in rewards.samples] == [chat, "R"]
    assert len({one["group"] for one in rewards.samples}) == 2


@pytest.mark.parametrize(
    ("meaning", "sent"),
    [("prompt", ("72", None)), ("reference", ("", {"reference": "72"}))],
)
def test_easyr1_plain_answers_are_read_by_ground_truth_setting(meaning, sent, rewards):
    easyr1.compute_score([given("four", "72")], ground_truth=meaning)
    (sample,) = rewards.samples
    assert (sample["prompt"], sample.get("fields")) == sent


@pytest.mark.parametrize("truth", ["72", "", 72, None, '{"answer": "72"}', ["72"], "[" * 99999])
def test_easyr1_sample_without_a_prompt_is_refused(truth, rewards):
    with pytest.raises(ValueError, match="sample 1 has no prompt, which EasyR1 does not pass"):
        easyr1.compute_score([given("four", EMMA), given("four", truth)])
    assert rewards.bodies == []


def test_easyr1_unknown_ground_truth_setting_is_refused(rewards):
    with pytest.raises(ValueError, match="'prompt' or 'reference'; got 'answer'"):
        easyr1.compute_score([given("four", "72")], ground_truth="answer")


def test_easyr1_failed_sample_raises(rewards):
    rewards.bad = {"four"}
    with pytest.raises(SampleFailed):
        easyr1.compute_score([given("four", EMMA)])
