"""Completions of several turns, from the policy's token ids and the mask of its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from alarm_client.chat.conversation import SplitError, split_prompt
from alarm_client.chat.templates import ChatTemplate, detect
from alarm_client.token_offsets import PolicyTokens, Span
from alarm_client.trainers._messages import completion_text
from alarm_client.types import Message


@dataclass(frozen=True, slots=True)
class Turns:
    """A completion of messages, and the spans of the policy's own tokens in its text."""

    messages: list[Message]
    offsets: list[Span]


def turns_of(
    ids: Sequence[int],
    mask: Sequence[int],
    tokens: PolicyTokens,
    tokenizer: Any,
    template: ChatTemplate | None = None,
) -> Turns | None:
    """The turns of a completion, or None if the mask does not separate any.

    Unmasked tokens are the policy's, the masked ones between them what the environment inserted,
    with the template's headers. Masked tokens at the start are the policy's of an earlier version
    and belong to its first turn, without spans. The spans are those of the unmasked tokens only, so
    that no reward can be placed on a masked one.
    """
    if len(ids) != len(mask):
        raise ValueError(f"{len(ids)} response tokens have a mask of {len(mask)}")
    runs = [
        (bool(is_own), [index for index, _ in run])
        for is_own, run in groupby(enumerate(mask), key=lambda item: bool(item[1]))
    ]
    if runs and not runs[0][0] and len(runs) > 1:
        runs = [(True, runs[0][1] + runs[1][1]), *runs[2:]]
    if not any(mask) or all(mask):
        return None
    messages: list[Message] = []
    offsets: list[Span] = []
    for is_own, indices in runs:
        own_ids = [ids[index] for index in indices]
        if not is_own:
            messages += _inserted(own_ids, tokenizer, template)
            continue
        start = len(completion_text([*messages, {"content": ""}]))
        text, spans = tokens.locate(own_ids)
        messages.append({"role": "assistant", "content": text})
        offsets += [
            (start + first, start + end)
            for index, (first, end) in zip(indices, spans, strict=True)
            if mask[index]
        ]
    return Turns(messages, offsets)


def on_all_tokens(rewards: Sequence[float], mask: Sequence[int]) -> list[float]:
    """Rewards of the unmasked tokens as one per token, 0 on masked ones."""
    values = iter(rewards)
    placed = [next(values, 0.0) if is_own else 0.0 for is_own in mask]
    if next(values, None) is not None:
        raise ValueError(f"{len(rewards)} token rewards for {sum(map(bool, mask))} unmasked tokens")
    return placed


def _inserted(ids: Sequence[int], tokenizer: Any, template: ChatTemplate | None) -> list[Message]:
    """The messages of an environment, from the text with the template's headers."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    if template is not None or detect(text) is not None:
        try:
            turns, _ = split_prompt(text, template)
        except SplitError:
            turns = ""
        if not isinstance(turns, str):
            found = [{"role": turn.role, "content": turn.content} for turn in turns]
            return [message for message in found if message["content"].strip()]
    plain: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return [{"role": "tool", "content": plain.strip()}] if plain.strip() else []
