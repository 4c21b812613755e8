"""Token rewards on the policy's tokens: samples from token ids, one float per token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from alarm_client.token_offsets import PolicyTokens, checked_ids
from alarm_client.trainers._failures import report, with_group_means
from alarm_client.trainers._inputs import preceded
from alarm_client.trainers._padding import at_last_token
from alarm_client.trainers._settings import OnFailure
from alarm_client.trainers._turns import (
    Opening,
    mask_by_template,
    on_all_tokens,
    opening_of,
    turns_of,
)
from alarm_client.types import Id, Reward, Sample, Text


def token_sample(
    prompt: Text,
    response_ids: Sequence[int],
    tokenizer: Any,
    mask: Sequence[int] | None = None,
    finish_reason: str | None = None,
    prompt_ids: Sequence[int] | None = None,
) -> Sample:
    """The sample of a response, with the token offsets of its completion.

    `mask`: false for tokens that the policy did not sample, such as results of tools. With one the
    completion has several messages, and only the other tokens have offsets (see `turns_of`).
    `prompt_ids`: as the policy read them; a start of the reply in them, such as `<think>`, is put
    before the completion, if the prompt is messages.
    """
    tokens = _policy_tokens(tokenizer)
    response_ids = checked_ids(response_ids, "token_ids")
    opening = Opening() if prompt_ids is None else opening_of(prompt_ids, tokenizer)
    own = [1] * len(response_ids) if mask is None else mask
    turns = turns_of(
        response_ids, own, tokens, tokenizer, opening.template, is_thought=opening.is_thought
    )
    completion: Text
    if turns is None:
        completion, offsets = tokens.locate(response_ids)
    elif mask is None and [one["role"] for one in turns.messages] == ["assistant"]:
        completion, offsets = str(turns.messages[0]["content"]), turns.offsets
    else:
        completion, offsets = turns.messages, turns.offsets
    sample = Sample(
        prompt=prompt, completion=completion, token_offsets=offsets, finish_reason=finish_reason
    )
    has_begun = opening.begun and not isinstance(prompt, str)
    return preceded(sample, opening.begun) if has_begun else sample


def policy_mask(
    mask: Sequence[int] | None,
    response_ids: Sequence[int],
    tokenizer: Any,
    prompt_ids: Sequence[int] | None,
) -> list[int] | None:
    """The mask of the policy's own tokens, by its chat template if the trainer's has none of them.

    Trainers mask the whole response to leave it out of the loss, such as one that was cut off.
    """
    if mask is None or any(mask) or prompt_ids is None:
        return None if mask is None else list(mask)
    return mask_by_template(response_ids, tokenizer, opening_of(prompt_ids, tokenizer).template)


def token_rewards(
    rewards: Sequence[Reward],
    lengths: Sequence[int],
    policy: OnFailure,
    groups: Sequence[Id] | None = None,
    masks: Sequence[Sequence[int] | None] | None = None,
) -> list[list[float]]:
    """One float per token of each response; a failed one has the policy's number on its last token.

    `masks`: as in `token_sample`; masked tokens get 0, and the last token is an unmasked one. With
    "group_mean" the number is the mean of the rewards of its group.
    """
    report(rewards, policy, groups)
    substitutes: Sequence[float | None] = [
        policy if isinstance(policy, float) else None for _ in rewards
    ]
    if policy == "group_mean":
        substitutes = with_group_means([reward.reward for reward in rewards], groups)
    known = [None] * len(rewards) if masks is None else masks
    return [_row(*each) for each in zip(rewards, lengths, substitutes, known, strict=True)]


def _row(
    reward: Reward, length: int, substitute: float | None, mask: Sequence[int] | None
) -> list[float]:
    num_own = length if mask is None or not any(mask) else sum(map(bool, mask))
    if reward.token_rewards is not None and reward.reward is not None:
        row = list(reward.token_rewards)
    elif substitute is None:
        raise ValueError("token rewards must be numbers; on_failure must be 'raise' or a number")
    else:
        row = at_last_token(substitute, num_own)
    return row if mask is None or len(row) == len(mask) else on_all_tokens(row, mask)


def plain_ids(ids: Any) -> list[int]:
    """Token ids of a list, an array or a tensor."""
    return [int(token_id) for token_id in (ids.tolist() if hasattr(ids, "tolist") else ids)]


@lru_cache(maxsize=4)
def _policy_tokens(tokenizer: Any) -> PolicyTokens:
    return PolicyTokens(tokenizer)
