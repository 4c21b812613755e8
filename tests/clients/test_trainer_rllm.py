"""rLLM's calls, as 9beb6e0 makes them: evaluators of its trainer, reward functions of workflows."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alarm_client.errors import SampleFailed
from alarm_client.trainers.rllm import AlarmEvaluator, AlarmReward

THOUGHT = {"role": "assistant", "content": "four", "reasoning_content": "hm"}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]


@dataclass
class Signal:  # rllm/eval/types.py
    name: str
    value: float
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvalOutput:
    reward: float
    is_correct: bool
    signals: list[Signal] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class RewardOutput:  # rllm/rewards/reward_types.py
    reward: float
    metadata: dict[str, Any] = field(default_factory=dict)
    is_correct: bool | None = None


@pytest.fixture(autouse=True)
def theirs(monkeypatch):
    types = {
        "rllm.eval.types": {"EvalOutput": EvalOutput, "Signal": Signal},
        "rllm.rewards.reward_types": {"RewardOutput": RewardOutput},
    }
    for name in ("rllm", "rllm.eval", "rllm.rewards", *types):
        module = ModuleType(name)
        vars(module).update(types.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)


def step(*chat, **values):
    given = {"chat_completions": list(chat), "output": None, "model_response": ""}
    return SimpleNamespace(**given | values)


def episode(*steps, output=None, **artifacts):
    trajectory = SimpleNamespace(steps=list(steps), output=output)
    return SimpleNamespace(trajectories=[trajectory], artifacts=artifacts)


def task(instruction="Q", **metadata):
    return SimpleNamespace(instruction=instruction, metadata=metadata)


def reply(text):
    return {"role": "assistant", "content": text, "reasoning": "hm"}


def test_rllm_evaluator_scores_the_last_reply(rewards):
    found = AlarmEvaluator(recipe="mine").evaluate(
        task(answer="A"), episode(step(*CHAT, reply("first")), step(*CHAT, reply("four")))
    )
    assert (found.reward, found.is_correct) == (8.0, True)
    assert {one.name: one.value for one in found.signals}["alarm_fluency"] == 4.0
    assert "alarm_depth" not in {one.name for one in found.signals}  # it was not computed
    assert rewards.samples == [
        {"prompt": CHAT, "completion": [THOUGHT], "fields": {"reference": "A"}}
    ]
    assert rewards.bodies[0]["recipe"] == "mine"


def test_rllm_is_correct_above_threshold(rewards):
    given = task(), episode(step(*CHAT, reply("four")))
    assert not AlarmEvaluator(threshold=8.0).evaluate(*given).is_correct
    assert AlarmEvaluator(threshold=3.9).evaluate(*given).is_correct


@pytest.mark.parametrize(
    ("given", "completion"),
    [
        (episode(output="four"), "four"),
        (episode(step(model_response="four"), step()), "four"),
        (episode(step(output="four")), "four"),
        (episode(answer="four"), "four"),
        (episode(), ""),
    ],
)
def test_rllm_episode_without_conversation_uses_instruction(given, completion, rewards):
    AlarmEvaluator().evaluate(task(ground_truth=72), given)
    (sample,) = rewards.samples
    assert (sample["prompt"], sample["completion"]) == ("Q", completion)
    assert sample["fields"] == {"reference": "72"}


def test_rllm_instruction_content_blocks_become_a_message(rewards):
    blocks = [{"type": "text", "text": "Q"}]
    AlarmEvaluator().evaluate(task(blocks), episode(output="four"))
    assert rewards.samples[0]["prompt"] == [{"role": "user", "content": "Q"}]


def test_rllm_evaluator_accepts_task_as_row(rewards):
    AlarmEvaluator().evaluate({"question": "Q"}, episode(output="four"))
    assert rewards.samples == [{"prompt": "Q", "completion": "four"}]


@pytest.mark.parametrize("action", ["four", SimpleNamespace(action="four")])
def test_rllm_reward_function_returns_reward_output(action, rewards):
    found = AlarmReward()({"question": "Q", "ground_truth": "A"}, action)
    assert (found.reward, found.metadata["alarm_fluency"]) == (4.0, 2.0)
    assert rewards.samples == [{"prompt": "Q", "completion": "four", "fields": {"reference": "A"}}]


def test_rllm_task_without_a_question_is_refused(rewards):
    with pytest.raises(ValueError, match=r"no question in .*'question'.*; it has \['id'\]"):
        AlarmReward()({"id": 1}, "four")


def test_rllm_failed_sample_is_raised(rewards):
    rewards.bad = {"four"}
    with pytest.raises(SampleFailed):
        AlarmReward()({"question": "Q"}, "four")
