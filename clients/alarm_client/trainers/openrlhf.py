"""OpenRLHF's `--reward.remote_url FILE.py` (before 0.10: `--remote_rm_url`): `reward_func`."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

from alarm_client.trainers._columns import rows_of, with_rows
from alarm_client.trainers._components import columns, summands
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import read_each, rest_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "reward_func"]

# OpenRLHF's own HTTP rewards have a timeout of 180 s. It logs a failure and continues with None,
# which ends the run later; an exception leaves the reason in that log.
DEFAULTS = TrainerDefaults("openrlhf", timeout=170.0, same_keys=True, references=("label",))
HABITS = DEFAULTS  # former name, kept as an alias


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Any = None
) -> dict[str, Any]:
    """`rewards`, `scores` and `extra_logs` as float tensors, one value per query.

    A query is prompt and response as the policy's tokenizer decodes them, special tokens included;
    one that does not start with its prompt is rejected. `scores`, which OpenRLHF filters by and
    requires in [0, 1], is the sigmoid of the reward. Scores and logs equal those of the server's
    `/compat/openrlhf`: the logs of `holistic` and of an aspect are their contributions to the
    reward.
    """
    import torch

    source = get_reward_source(DEFAULTS)

    def read(query: str, prompt: str) -> Sample:
        return Sample(prompt=prompt, completion=without_end_tokens(rest_of(query, prompt)))

    samples = read_each(DEFAULTS.trainer, read, queries=queries, prompts=prompts)
    rows = rows_of({"label": labels, "labels": labels}, len(samples))
    rewards = source.rewards(with_rows(samples, rows, source.settings))
    values = numbers(rewards, source.settings.on_failure)
    parts = columns(rewards, source.aspect_names.update(rewards))
    hierarchy = source.hierarchy() if samples else {}
    for index, reward in enumerate(rewards):
        for name, value in summands(reward, hierarchy).items() if hierarchy else ():
            if name in parts:
                parts[name][index] = value
    return {
        "rewards": torch.tensor(values),
        "scores": torch.tensor([_logistic(value) for value in values]),
        "extra_logs": {f"alarm_{name}": torch.tensor(column) for name, column in parts.items()},
    }


def _logistic(value: float) -> float:
    grown = exp(-abs(value))
    return 1 / (1 + grown) if value >= 0 else grown / (1 + grown)
