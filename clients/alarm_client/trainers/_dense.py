"""Token rewards on the policy's tokens: samples from token ids, one float per token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from alarm_client.token_offsets import PolicyTokens
from alarm_client.trainers._failures import report, with_group_means
from alarm_client.trainers._padding import at_last_token
from alarm_client.trainers._settings import OnFailure
from alarm_client.types import Id, Reward, Sample, Text


def token_sample(prompt: Text, response_ids: Sequence[int], tokenizer: Any) -> Sample:
    """The sample of a response, with the token offsets of its completion."""
    completion, offsets = _policy_tokens(tokenizer).locate(response_ids)
    return Sample(prompt=prompt, completion=completion, token_offsets=offsets)


def token_rewards(
    rewards: Sequence[Reward],
    lengths: Sequence[int],
    policy: OnFailure,
    groups: Sequence[Id] | None = None,
) -> list[list[float]]:
    """One float per token of each response; a failed one has the policy's number on its last token.

    With "group_mean" the number is the mean of the rewards of its group.
    """
    report(rewards, policy, groups)
    substitutes: Sequence[float | None] = [
        policy if isinstance(policy, float) else None for _ in rewards
    ]
    if policy == "group_mean":
        substitutes = with_group_means([reward.reward for reward in rewards], groups)
    return [_row(*each) for each in zip(rewards, lengths, substitutes, strict=True)]


def _row(reward: Reward, length: int, substitute: float | None) -> list[float]:
    if reward.token_rewards is not None and reward.reward is not None:
        return list(reward.token_rewards)
    if substitute is None:
        raise ValueError("token rewards must be numbers; on_failure must be 'raise' or a number")
    return at_last_token(substitute, length)


def plain_ids(ids: Any) -> list[int]:
    """Token ids of a list, an array or a tensor."""
    return [int(token_id) for token_id in (ids.tolist() if hasattr(ids, "tolist") else ids)]


@lru_cache(maxsize=4)
def _policy_tokens(tokenizer: Any) -> PolicyTokens:
    return PolicyTokens(tokenizer)
