"""AReaL's `reward_fn="alarm_client.trainers.areal.reward_fn"` in RLVR workflows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alarm_client.trainers.failure import numbers
from alarm_client.trainers.settings import Habits
from alarm_client.trainers.source import source_of
from alarm_client.trainers.texts import prompt_of, without_end_tokens
from alarm_client.types import Sample

__all__ = ["HABITS", "reward_fn"]

# AReaL runs this in a forked process, gives up after 15 s and then takes 0; what is raised before
# that it tries four times.
HABITS = Habits("areal", timeout=12.0, aspects="admitted")


def reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    messages: Sequence[Any] | None = None,
    **row: Any,
) -> float:
    """The reward of one completion.

    AReaL decodes both texts with special tokens: the conversation in the row's `messages` is used
    for the prompt where there is one, and end-of-turn tokens of the completion are dropped.
    """
    source = source_of(HABITS)
    sample = Sample(
        prompt=prompt if messages is None else prompt_of(messages),
        completion=without_end_tokens(completions),
    )
    (value,) = numbers(source.rewards([sample]), source.settings.on_failure)
    return value
