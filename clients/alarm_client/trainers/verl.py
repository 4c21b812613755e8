"""verl: `compute_score` for `reward.custom_reward_function`, and a manager that sees the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alarm_client.trainers.components import components
from alarm_client.trainers.failure import numbers
from alarm_client.trainers.rows import with_rows
from alarm_client.trainers.source import RewardSource, source_of
from alarm_client.trainers.texts import prompt_of
from alarm_client.trainers.verl_manager import (
    HABITS,
    AlarmRewardManager,
    row_of_dataset,
    row_of_verl,
)
from alarm_client.types import Reward, Sample, Text

__all__ = [
    "HABITS",
    "AlarmRewardManager",
    "compute_score",
    "compute_score_blocking",
    "row_of_dataset",
]

# What verl adds to a call when it serves a reward model of its own.
_OF_VERL = ("reward_router_address", "reward_model_tokenizer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    prompt_key: str = "prompt",
    **settings: Any,
) -> dict[str, float]:
    """`{"score": reward, ...}` of one response, with the reward's parts beside it.

    verl passes no prompt: it is taken from `extra_info[prompt_key]`. `reward_kwargs` may name
    `prompt_key` and any of Settings; `fields` may name `ground_truth`, which is the field
    `reference` without it, `data_source` and what `extra_info` holds.
    """
    source = source_of(HABITS, _own(settings))
    samples = [_sample(solution_str, extra_info, prompt_key)]
    rows = [row_of_verl(extra_info, ground_truth=ground_truth, data_source=data_source)]
    rewards = await source.arewards(with_rows(samples, rows, source.settings))
    return _scored(rewards, source)


def compute_score_blocking(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    prompt_key: str = "prompt",
    **settings: Any,
) -> dict[str, float]:
    """As `compute_score`, for managers that do not await (verl up to 0.7.0, `remote`)."""
    source = source_of(HABITS, _own(settings))
    samples = [_sample(solution_str, extra_info, prompt_key)]
    rows = [row_of_verl(extra_info, ground_truth=ground_truth, data_source=data_source)]
    return _scored(source.rewards(with_rows(samples, rows, source.settings)), source)


def _scored(rewards: list[Reward], source: RewardSource) -> dict[str, float]:
    (score,) = numbers(rewards, source.settings.on_failure)
    parts = components(rewards[0], source.aspect_names.seen(rewards))
    return {"score": score, **{f"alarm_{name}": value for name, value in parts.items()}}


def _sample(solution: str, extra_info: Mapping[str, Any] | None, key: str) -> Sample:
    return Sample(prompt=_prompt(extra_info or {}, key), completion=solution)


def _prompt(extra_info: Mapping[str, Any], key: str) -> Text:
    if extra_info.get(key) is None:
        raise ValueError(
            f"verl passes no prompt to compute_score: put it into the dataset's extra_info[{key!r}]"
            f" (it has {sorted(extra_info)}), name another key by reward_kwargs.prompt_key, "
            "or use AlarmRewardManager, which sees the conversation"
        )
    return prompt_of(extra_info[key])


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OF_VERL}
