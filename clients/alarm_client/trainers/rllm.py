"""rLLM: an evaluator for its trainer and `--evaluator`, and a reward function for workflows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.trainers._columns import with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, split_messages
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource
from alarm_client.types import Sample, Text

__all__ = ["DEFAULTS", "AlarmEvaluator", "AlarmReward"]

# rLLM waits for an evaluator in a thread, without a time limit.
DEFAULTS = TrainerDefaults(
    "rllm",
    timeout=600.0,
    references=("reference", "ground_truth", "answer", "solution", "label"),
)
HABITS = DEFAULTS  # former name, kept as an alias

# The question columns of rLLM's datasets, in the order of its own workflows.
_QUESTIONS = ("messages", "question", "prompt", "problem")


class _Rewards:
    """Rewards of one sample per call; takes any of Settings as arguments."""

    def __init__(self, **settings: Any) -> None:
        self.source = RewardSource(read_settings(DEFAULTS, settings))

    def _of(
        self, prompt: Text, completion: Text, row: Mapping[str, Any]
    ) -> tuple[float, dict[str, float]]:
        """The reward, and its computed components by name."""
        samples = [Sample(prompt=prompt, completion=completion)]
        rewards = self.source.rewards(with_rows(samples, [row], self.source.settings))
        (value,) = numbers(rewards, self.source.settings.on_failure)
        parts = components(rewards[0], self.source.aspect_names.update(rewards))
        return value, {
            f"alarm_{name}": part for name, part in parts.items() if not math.isnan(part)
        }


class AlarmEvaluator(_Rewards):
    """`AgentTrainer(evaluator=AlarmEvaluator())`, or `--evaluator` with its `module:name`.

    Scores the last reply of the last trajectory. `is_correct` is true above `threshold`.
    """

    def __init__(self, threshold: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self.threshold = threshold

    def evaluate(self, task: Any, episode: Any) -> Any:
        """rLLM's EvalOutput, with the reward components as signals."""
        from rllm.eval.types import EvalOutput, Signal

        value, parts = self._of(*_last_turn(episode, task), getattr(task, "metadata", task))
        return EvalOutput(
            reward=value,
            is_correct=value > self.threshold,
            signals=[Signal(name, part) for name, part in parts.items()],
        )


class AlarmReward(_Rewards):
    """`reward_function=AlarmReward()` of rLLM's workflows: called with the task and the action."""

    def __call__(self, task_info: Mapping[str, Any], action: Any) -> Any:
        """rLLM's RewardOutput, with the reward components as metadata."""
        from rllm.rewards.reward_types import RewardOutput

        text = str(getattr(action, "action", action) or "")
        value, parts = self._of(_question(task_info), text, task_info)
        return RewardOutput(reward=value, metadata=parts)


def _last_turn(episode: Any, task: Any) -> tuple[Text, Text]:
    """The conversation before the policy's last reply, and that reply."""
    steps = [step for trajectory in episode.trajectories[-1:] for step in trajectory.steps]
    for step in reversed(steps):
        if step.chat_completions and _role(step.chat_completions[-1]) == "assistant":
            return split_messages(step.chat_completions)
    return _instruction(task), _reply(episode, steps)


def _reply(episode: Any, steps: Sequence[Any]) -> str:
    """The final text of an episode without conversations, as rLLM's own evaluators find it."""
    if "answer" in episode.artifacts:
        return str(episode.artifacts["answer"])
    for trajectory in episode.trajectories[-1:]:
        if trajectory.output:
            return str(trajectory.output)
    for step in reversed(steps):
        if step.output or step.model_response:
            return str(step.output or step.model_response)
    return ""


def _instruction(task: Any) -> Text:
    instruction = getattr(task, "instruction", None)
    if instruction:
        chat = [{"role": "user", "content": instruction}]
        return instruction if isinstance(instruction, str) else prompt_of(chat)
    return _question(getattr(task, "metadata", task))


def _question(row: Mapping[str, Any]) -> Text:
    for name in _QUESTIONS:
        if row.get(name):
            return prompt_of(row[name])
    raise ValueError(f"rllm: the task has no question in {list(_QUESTIONS)}; it has {sorted(row)}")


def _role(message: Any) -> str:
    return str(message.get("role") if isinstance(message, Mapping) else message.role)
