"""The paper's penalty for short responses, which is applied in the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alarm_client.types import Holistic, Reward, RewardResult


def punish_too_short(
    result: RewardResult,
    num_tokens: Sequence[int],
    *,
    holistic_weight: float,
    max_num_tokens: int = 2,
    normalized: float = -10.0,
) -> RewardResult:
    """Replace the rewards of short responses by `holistic_weight * normalized` on the last token.

    `num_tokens`: the length of each response, counted as in the paper, including the decoder's
    start token if the policy has one. A response of at most `max_num_tokens` is too short, whatever
    the recipe's rule, even if the server returned an error for it.
    """
    rewards = punish_each(result.rewards, num_tokens, holistic_weight, max_num_tokens, normalized)
    return replace(result, rewards=rewards)


def punish_each(
    rewards: Sequence[Reward],
    num_tokens: Sequence[int],
    holistic_weight: float,
    max_num_tokens: int = 2,
    normalized: float = -10.0,
) -> tuple[Reward, ...]:
    """As `punish_too_short`, for a list of rewards."""
    return tuple(
        _punished(reward, holistic_weight * normalized, normalized)
        if length <= max_num_tokens
        else reward
        for reward, length in zip(rewards, num_tokens, strict=True)
    )


def _punished(reward: Reward, amount: float, normalized: float) -> Reward:
    tokens = reward.token_rewards
    return replace(
        reward,
        reward=amount,
        token_rewards=tokens and (0.0,) * (len(tokens) - 1) + (amount,),
        holistic=Holistic(None, normalized),
        admitted=False,
        aspects={},
        error=None,
    )
