"""OpenRLHF's `--reward.remote_url FILE.py` (before 0.10: `--remote_rm_url`): `reward_func`."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Any

from alarm_client.trainers.components import columns
from alarm_client.trainers.failure import numbers
from alarm_client.trainers.settings import Habits
from alarm_client.trainers.source import source_of
from alarm_client.trainers.texts import rest_of, without_end_tokens
from alarm_client.types import Reward, Sample

__all__ = ["HABITS", "reward_func"]

# OpenRLHF gives its own HTTP rewards 180 s. It logs a failure and goes on with None, which ends
# the run later; raising leaves the reason in that log.
HABITS = Habits("openrlhf", timeout=170.0, same_keys=True)


def reward_func(
    queries: Sequence[str], prompts: Sequence[str], labels: Any = None
) -> dict[str, Any]:
    """`rewards`, `scores` and `extra_logs` as tensors of as many floats as there are queries.

    A query is prompt and response as the policy's tokenizer decodes them, special tokens included;
    one that does not start with its prompt is refused. `scores`, which OpenRLHF filters by and
    wants in [0, 1], is the logistic of the normalized holistic score (of the reward, without one).
    """
    import torch

    source = source_of(HABITS)
    samples = [
        Sample(prompt=prompt, completion=without_end_tokens(rest_of(query, prompt)))
        for query, prompt in zip(queries, prompts, strict=True)
    ]
    rewards = source.rewards(samples)
    values = numbers(rewards, source.settings.on_failure)
    parts = columns(rewards, source.aspect_names.seen(rewards))
    return {
        "rewards": torch.tensor(values),
        "scores": torch.tensor([_share(one) for one in zip(rewards, values, strict=True)]),
        "extra_logs": {f"alarm_{name}": torch.tensor(column) for name, column in parts.items()},
    }


def _share(rewarded: tuple[Reward, float]) -> float:
    reward, value = rewarded
    z = value if reward.holistic is None else reward.holistic.normalized
    return 1 / (1 + exp(-max(-60.0, min(60.0, z))))
