"""verifiers and prime-rl: a reward for v1 tasks, and two for the older Rubric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alarm_client.trainers.components import components
from alarm_client.trainers.failure import numbers
from alarm_client.trainers.settings import Habits
from alarm_client.trainers.source import source_of
from alarm_client.trainers.texts import completion_of, prompt_of, role_of
from alarm_client.types import Sample

__all__ = ["HABITS", "group_reward", "reward", "rubric_reward"]

# A Rubric turns what is raised into 0.0 and a line in its log; a v1 task marks the trace as failed.
HABITS = Habits("verifiers", timeout=240.0)


async def reward(task: Any, trace: Any) -> float:
    """v1: the reward of a trace's last reply; its parts become the trace's metrics.

    Plugged in by `rewards.alarm.fn = "alarm_client.trainers.verifiers.reward"` of a task's config.
    """
    messages = list(trace.messages)
    last = max(
        (index for index, message in enumerate(messages) if _role(message) == "assistant"),
        default=-1,
    )
    if last < 0:
        raise ValueError("verifiers: the trace has no reply to judge")
    sample = Sample(
        prompt=prompt_of(messages[:last]), completion=completion_of([_plain(messages[last])])
    )
    source = source_of(HABITS)
    rewards = await source.arewards([sample])
    (value,) = numbers(rewards, source.settings.on_failure)
    parts = components(rewards[0], source.aspect_names.seen(rewards))
    trace.record_metrics({f"alarm/{name}": part for name, part in parts.items()})
    return value


async def rubric_reward(prompt: Any, completion: Any) -> float:
    """Rubric: the reward of one rollout."""
    (value,) = await group_reward([prompt], [completion])
    return value


async def group_reward(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
    """Rubric: the rewards of a group of rollouts in one call."""
    source = source_of(HABITS)
    rewards = await source.arewards(
        [
            Sample(prompt=prompt_of(prompt), completion=completion_of(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )
    return numbers(rewards, source.settings.on_failure)


def _role(message: Any) -> str:
    return role_of(message)


def _plain(message: Any) -> dict[str, Any]:
    return message if isinstance(message, dict) else {"content": message.content}
