"""trlx's `reward_fn`: scalars, or token rewards for its PPO trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alarm_client.trainers._columns import groups_of, rows_of, with_rows
from alarm_client.trainers._dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import read_each, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "dense_reward_fn", "reward_fn"]

# Rank 0 requests while the others wait in a broadcast, so the collective watchdog is the timeout.
# `original_output` is the reference column in its examples.
DEFAULTS = TrainerDefaults(
    "trlx",
    timeout=480.0,
    aspects="admitted",
    whole_groups="prompts that are repeated in a batch",
    references=("reference", "original_output", "ground_truth", "answer", "label"),
)
HABITS = DEFAULTS  # former name, kept as an alias


def reward_fn(
    samples: Sequence[str], prompts: Sequence[str], outputs: Sequence[str], **columns: Any
) -> list[float]:
    """One reward per output, for every trainer of trlx."""
    source = get_reward_source(DEFAULTS)

    def read(prompt: str, output: str) -> Sample:
        return Sample(prompt=prompt, completion=without_end_tokens(output))

    to_score = read_each(DEFAULTS.trainer, read, prompts=prompts, outputs=outputs)
    to_score = with_rows(
        to_score, rows_of(columns, len(to_score)), source.settings, prompts=prompts
    )
    rewards = source.rewards(to_score)
    return numbers(rewards, source.settings.on_failure, groups_of(to_score))


def dense_reward_fn(
    samples: Sequence[str],
    prompts: Sequence[str],
    outputs: Sequence[str],
    tokenizer: Any = None,
    model_tok: Any = None,
    **columns: Any,
) -> list[list[float]]:
    """One reward per token of `tokenizer(output)`, for PPO only.

    trlx tokenizes outputs again to place rewards, so those tokens are used; it pads on the right.
    Older versions pass the tokenizer as `model_tok`.
    """
    policy = tokenizer or model_tok
    if policy is None:
        raise ValueError("trlx: dense rewards require the tokenizer, which only PPO passes")
    source = get_reward_source(DEFAULTS)
    ids = [plain_ids(policy(output).input_ids) for output in outputs]
    to_score = [token_sample(prompt, row, policy) for prompt, row in zip(prompts, ids, strict=True)]
    to_score = with_rows(
        to_score, rows_of(columns, len(to_score)), source.settings, prompts=prompts
    )
    rewards = source.rewards(to_score)
    lengths = [len(row) for row in ids]
    return token_rewards(rewards, lengths, source.settings.on_failure, groups_of(to_score))
