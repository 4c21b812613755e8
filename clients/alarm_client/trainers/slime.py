"""slime's hooks: `--custom-rm-path`, and two further hooks for token rewards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from alarm_client.trainers._columns import Row, groups_of, row_of, with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, read_each, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import RewardSource, get_reward_source
from alarm_client.types import Id, Reward, Sample

__all__ = [
    "DEFAULTS",
    "custom_rm",
    "dense_rm",
    "post_process_rewards",
    "rewarded",
    "row_of_dataset",
    "token_level_advantages",
]

# slime waits for a custom reward without a time limit, and an error ends the rollout.
# With `--group-rm` a call has all completions of a prompt.
DEFAULTS = TrainerDefaults(
    "slime",
    timeout=600.0,
    whole_groups="--group-rm",
    same_keys=True,
    references=("label",),
    group_column="group_index",
)
HABITS = DEFAULTS  # former name, kept as an alias
TOKEN_REWARDS = "alarm_token_rewards"  # noqa: S105 - a name: among a sample's metadata


async def custom_rm(args: Any, sample: Any, **_: Any) -> Any:
    """The reward of a sample, or of each sample of a group (`--group-rm`).

    Where `loss_mask` has a 0, the completion has messages, as in `dense_rm`. A list without
    `--group-rm` has the samples of one rollout, which are in no group.

    With `--reward-key K` it is a dict: the reward under K, its parts under `alarm_...`.
    """
    return await rewarded(args, sample, DEFAULTS)


async def rewarded(args: Any, sample: Any, defaults: TrainerDefaults) -> Any:
    """As `custom_rm`, for slime or a fork of it."""
    samples = list(sample) if isinstance(sample, (list, tuple)) else [sample]
    source = get_reward_source(defaults)

    def read(one: Any) -> Sample:
        if _has_turns(one):
            return replace(_token_sample(args, one), token_offsets=None)
        return Sample(
            prompt=prompt_of(one.prompt),
            completion=without_end_tokens(one.response),
            finish_reason=_finish_reason(one),
        )

    to_score = read_each(defaults.trainer, read, samples=samples)
    to_score = _with_rows(args, to_score, sample, source)
    rewards = await source.arewards(to_score)
    found = _found(args, rewards, source, groups_of(to_score))
    return found[0] if samples[0] is sample else found


async def dense_rm(args: Any, sample: Any, **_: Any) -> Any:
    """As `custom_rm`; the token rewards go into the sample's metadata for `post_process_rewards`.

    Where `loss_mask` is 0, as for results of tools, the completion has a message of the environment
    and the tokens have no reward.
    The policy's tokenizer is read from `--hf-checkpoint`.
    """
    samples = list(sample) if isinstance(sample, (list, tuple)) else [sample]
    source = get_reward_source(DEFAULTS)
    masks = [_mask(one) for one in samples]
    to_score = [_token_sample(args, one) for one in samples]
    to_score = _with_rows(args, to_score, sample, source)
    rewards = await source.arewards(to_score)
    groups = groups_of(to_score)
    found = _found(args, rewards, source, groups)
    lengths = [one.response_length for one in samples]
    rows = token_rewards(rewards, lengths, source.settings.on_failure, groups, masks)
    for one, row in zip(samples, rows, strict=True):
        one.metadata = {**(one.metadata or {}), TOKEN_REWARDS: row}
    return found[0] if samples[0] is sample else found


def post_process_rewards(args: Any, samples: Sequence[Any]) -> tuple[list[float], list[Any]]:
    """`--custom-reward-post-process-path`: scalars to log, and token rewards.

    Token rewards are one tensor per sample, as slime's logging sums anything else.
    """
    import torch

    flat = [
        one for entry in samples for one in (entry if isinstance(entry, (list, tuple)) else [entry])
    ]
    for one in flat:
        if len(one.metadata.get(TOKEN_REWARDS, ())) != one.response_length:
            raise ValueError(
                f"slime: sample {one.index} has no token reward for each of its "
                f"{one.response_length} tokens; is --custom-rm-path "
                "alarm_client.trainers.slime.dense_rm?"
            )
    raw = [float(one.get_reward_value(args)) for one in flat]
    return raw, [torch.tensor(one.metadata[TOKEN_REWARDS]) for one in flat]


def token_level_advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """`--custom-advantage-function-path`: fills `advantages` and `returns` from token rewards.

    The token rewards less `kl_coef` times the KL are each token's reward: with a critic they go
    through GAE (slime's, if its module is installed), without one each advantage is the discounted
    return.
    """
    rewards = [
        reward.to(kl.device, kl.dtype) - args.kl_coef * kl
        for reward, kl in zip(_local_rewards(args, rollout_data), rollout_data["kl"], strict=True)
    ]
    if rollout_data.get("values"):
        advantages, returns = _with_critic(args, rollout_data, rewards)
    else:
        returns = [_discounted(row, args.gamma) for row in rewards]
        advantages = [row.clone() for row in returns]
    rollout_data["advantages"], rollout_data["returns"] = advantages, returns


def _local_rewards(args: Any, rollout_data: dict[str, Any]) -> list[Any]:
    """The token rewards of this rank; ValueError if context parallelism splits the tokens."""
    rewards = rollout_data["rewards"]
    pairs = zip(rewards, rollout_data["kl"], strict=True)
    for index, (reward, kl) in enumerate(pairs):
        if reward.shape != kl.shape:
            raise ValueError(
                f"slime: sample {index} has {reward.numel()} token rewards for {kl.numel()} "
                "tokens of this rank; token rewards require --context-parallel-size 1"
            )
    return list(rewards)


def _with_critic(
    args: Any, rollout_data: dict[str, Any], rewards: list[Any]
) -> tuple[list[Any], list[Any]]:
    """Advantages and returns by GAE: slime's own, or the same here for forks without it."""
    theirs = sys.modules.get("slime.utils.ppo_utils")
    if theirs is not None:
        advantages, returns = theirs.get_advantages_and_returns_batch(
            rollout_data["total_lengths"],
            rollout_data["response_lengths"],
            rollout_data["values"],
            rewards,
            args.gamma,
            args.lambd,
        )
        return advantages, returns
    values = rollout_data["values"]
    advantages = [
        _discounted(reward + args.gamma * _next(value) - value, args.gamma * args.lambd)
        for reward, value in zip(rewards, values, strict=True)
    ]
    returns = [row + value for row, value in zip(advantages, values, strict=True)]
    return advantages, returns


def _next(values: Any) -> Any:
    """The value after each token; 0 after the last."""
    following = values.roll(-1)
    following[-1:] = 0
    return following


def _discounted(rewards: Any, gamma: float) -> Any:
    """The discounted return of each token: [tokens] to [tokens]."""
    returns = rewards.clone()
    for index in range(len(returns) - 2, -1, -1):
        returns[index] += gamma * returns[index + 1]
    return returns


def _has_turns(sample: Any) -> bool:
    """Whether the loss mask tells turns apart, or only the tokens have the response."""
    mask = _mask(sample) or ()
    is_text_missing = not sample.response and getattr(sample, "response_length", 0) > 0
    return is_text_missing or (0 in mask and any(mask))


def _token_sample(args: Any, sample: Any) -> Sample:
    tokens = plain_ids(sample.tokens)
    start = len(tokens) - sample.response_length
    return token_sample(
        prompt_of(sample.prompt),
        tokens[start:],
        _tokenizer(args.hf_checkpoint),
        _mask(sample),
        _finish_reason(sample),
        tokens[:start],
    )


def _mask(sample: Any) -> list[int] | None:
    mask = getattr(sample, "loss_mask", None)
    return None if mask is None else plain_ids(mask)


def _finish_reason(sample: Any) -> str | None:
    """ "length" for slime's status TRUNCATED."""
    status = getattr(sample, "status", None)
    return "length" if getattr(status, "value", status) == "truncated" else None


def _with_rows(args: Any, to_score: list[Sample], given: Any, source: RewardSource) -> list[Sample]:
    """The samples of a call with what their rows say; the call's list is a group or a rollout."""
    is_list = isinstance(given, (list, tuple))
    samples = list(given) if is_list else [given]
    rows = [row_of_dataset(one) for one in samples]
    is_group = is_list and getattr(args, "group_rm", True)
    prompts = [one.prompt for one in samples] if is_group else None
    size = None if is_list else getattr(args, "n_samples_per_prompt", None)
    return with_rows(to_score, rows, source.settings, prompts=prompts, group_size=size)


def row_of_dataset(sample: Any) -> Row:
    """A slime sample's attributes and its metadata."""
    row = row_of(sample)
    return {**row_of(row.get("metadata")), **row}


def _found(
    args: Any, rewards: list[Reward], source: RewardSource, groups: Sequence[Id]
) -> list[Any]:
    values = numbers(rewards, source.settings.on_failure, groups)
    key = getattr(args, "reward_key", None)
    if not key:
        return list(values)
    names = source.aspect_names.update(rewards)
    return [
        {
            **{f"alarm_{name}": part for name, part in components(reward, names).items()},
            key: value,
        }
        for reward, value in zip(rewards, values, strict=True)
    ]


@lru_cache(maxsize=2)
def _tokenizer(checkpoint: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)
