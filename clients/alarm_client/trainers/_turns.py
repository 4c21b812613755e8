"""Completions of several turns, from the policy's token ids and the mask of its own tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

from alarm_client.chat.conversation import (
    SplitError,
    read_answer,
    split_prompt,
    without_thoughts,
)
from alarm_client.chat.templates import THOUGHTS, ChatTemplate, detect, detect_answer
from alarm_client.token_offsets import PolicyTokens, Span
from alarm_client.trainers._messages import completion_text
from alarm_client.types import Message

_OWN = ("assistant", THOUGHTS)

# Enough tokens to tell whether a response starts with a header, special or in pieces.
_HEADER_TOKENS = 16

# Qwen's templates write the results of tools as a turn of the user.
_INNER = r"(?:(?!</?tool_response>).)*"
_RESULTS = re.compile(rf"\s*(?:<tool_response>{_INNER}</tool_response>\s*)+", re.DOTALL)
_RESULT = re.compile(rf"<tool_response>\n?({_INNER}?)\n?</tool_response>", re.DOTALL)


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
    *,
    is_thought: bool = False,
) -> Turns | None:
    """The turns of a completion, or None if neither mask nor channels (gpt-oss) separate any.

    Unmasked tokens are the policy's, the masked ones between them what the environment inserted,
    with the template's headers. Masked tokens at the start are the policy's of an earlier version,
    without spans; if they have several turns, the template tells these apart. The spans are those
    of the unmasked tokens only, so that no reward can be placed on a masked one.
    """
    if len(ids) != len(mask):
        raise ValueError(f"{len(ids)} response tokens have a mask of {len(mask)}")
    template = template or detect_answer(_decoded(ids[:_HEADER_TOKENS], tokenizer))
    if not any(mask) or (all(mask) and not _has_channels(template)):
        return None
    num_earlier = next(index for index, is_own in enumerate(mask) if is_own)
    earlier = mask_by_template(ids[:num_earlier], tokenizer, template) or [1] * num_earlier
    runs = [
        (is_own, [index for index, _ in run])
        for is_own, run in groupby(
            enumerate([*earlier, *mask[num_earlier:]]), key=lambda item: bool(item[1])
        )
    ]
    messages: list[Message] = []
    offsets: list[Span] = []
    begun = ""
    for is_own, indices in runs:
        own_ids = [ids[index] for index in indices]
        if not is_own:
            inserted, begun = _inserted(own_ids, tokenizer, template)
            if messages and inserted and inserted[0]["role"] == "assistant":
                messages[-1] = _continued(messages[-1], inserted.pop(0))
            messages += inserted
            continue
        located: list[Span] = []
        begins_with = THOUGHTS if is_thought and not messages else "assistant"
        for role, text, spans in _replies(own_ids, tokens, tokenizer, template, begins_with):
            start = len(completion_text([*messages, {"content": ""}])) + len(begun)
            messages.append({"role": role, "content": begun + text})
            located += [(start + first, start + end) for first, end in spans]
            begun = ""
        offsets += [span for index, span in zip(indices, located, strict=True) if mask[index]]
    return Turns(messages, offsets)


def _replies(
    ids: Sequence[int],
    tokens: PolicyTokens,
    tokenizer: Any,
    template: ChatTemplate | None,
    begins_with: str,
) -> list[tuple[str, str, list[Span]]]:
    """The role and text of the policy's tokens, with their spans in it; one for each channel.

    ``begins_with`` is the role of text before the first header. Thoughts are left out if an answer
    follows, as in texts. Their tokens, and those of headers, have empty spans where it starts.
    """
    if template is None or not _has_channels(template):
        text, spans = tokens.locate(ids)
        return [("assistant", text, list(spans))]
    pieces = [_decoded([one], tokenizer) for one in ids]
    starts = list(accumulate(map(len, pieces), initial=0))
    headers = list(template.header.finditer("".join(pieces)))
    firsts = [bisect_left(starts, header.start()) for header in headers]
    contents = [bisect_left(starts, header.end()) for header in headers]
    roles = [begins_with, *map(template.role, headers)]
    last_answer = max((at for at, role in enumerate(roles) if role != THOUGHTS), default=-1)
    replies: list[tuple[str, str, list[Span]]] = []
    num_left_out = 0
    for at, (role, first, start, end) in enumerate(
        zip(roles, [0, *firsts], [0, *contents], [*firsts, len(ids)], strict=True)
    ):
        num_left_out += start - first
        if role == THOUGHTS and at < last_answer:
            num_left_out += end - start
            continue
        text, spans = tokens.locate(ids[start:end])
        if text:
            kept = "assistant" if role == THOUGHTS else role
            replies.append((kept, text, [*[(0, 0)] * num_left_out, *spans]))
            num_left_out = 0
        else:
            num_left_out += len(spans)
    role, text, spans = replies.pop() if replies else ("assistant", "", [])
    return [*replies, (role, text, [*spans, *[(len(text), len(text))] * num_left_out])]


def mask_by_template(
    ids: Sequence[int], tokenizer: Any, template: ChatTemplate | None
) -> list[int] | None:
    """The mask of a response whose trainer has none: 0 from a turn of others to the next reply.

    None if the policy's template is unknown, or the response has no such turn.
    """
    if template is None or not template.is_special:
        return None
    pieces = [_decoded([one], tokenizer) for one in ids]
    starts = list(accumulate(map(len, pieces), initial=0))
    mask = [1] * len(ids)
    first: int | None = None
    for header in template.header.finditer("".join(pieces)):
        is_own = template.role(header) in _OWN
        if first is None and not is_own:
            first = _end_of_turn(pieces, bisect_left(starts, header.start()))
        elif first is not None and is_own:
            end = bisect_left(starts, _end_of_header(header, template))
            mask[first:end] = [0] * (end - first)
            first = None
    if first is not None:
        mask[first:] = [0] * (len(ids) - first)
    return None if all(mask) else mask


@dataclass(frozen=True, slots=True)
class Opening:
    """The policy's template by a prompt, and the start of the reply that the prompt has.

    ``is_thought``: the prompt has opened a channel of thoughts (gpt-oss).
    """

    template: ChatTemplate | None = None
    begun: str = ""
    is_thought: bool = False


def opening_of(ids: Sequence[int], tokenizer: Any) -> Opening:
    """The opening of a prompt's ids."""
    text = _decoded(ids, tokenizer)
    template = detect(text)
    if template is None:
        return Opening()
    *_, last = (None, *template.header.finditer(text))
    is_thought = last is not None and template.role(last) == THOUGHTS and last.end() == len(text)
    try:
        return Opening(template, split_prompt(text, template)[1], is_thought)
    except SplitError:
        return Opening(template, is_thought=is_thought)


def _end_of_header(header: re.Match[str], template: ChatTemplate) -> int:
    """Where the policy begins to write: gpt-oss writes the channel of its reply itself."""
    return header.end("role") if _has_channels(template) and header["role"] else header.end()


def _has_channels(template: ChatTemplate | None) -> bool:
    """Whether an answer has a header for each of its channels, which the policy writes."""
    return template is not None and "channel" in template.header.groupindex


def _decoded(ids: Sequence[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def _end_of_turn(pieces: Sequence[str], end: int) -> int:
    """The end of a turn of the policy, without the white space before the next header."""
    while end and not pieces[end - 1].strip():
        end -= 1
    return end


def on_all_tokens(rewards: Sequence[float], mask: Sequence[int]) -> list[float]:
    """Rewards of the unmasked tokens as one per token, 0 on masked ones."""
    values = iter(rewards)
    placed = [next(values, 0.0) if is_own else 0.0 for is_own in mask]
    if next(values, None) is not None:
        raise ValueError(f"{len(rewards)} token rewards for {sum(map(bool, mask))} unmasked tokens")
    return placed


def _inserted(
    ids: Sequence[int], tokenizer: Any, template: ChatTemplate | None
) -> tuple[list[dict[str, str]], str]:
    """The messages of an environment by the template's headers, and the start of the next reply.

    Text before the first header is a part of the last reply that is not to be trained.
    """
    text = _decoded(ids, tokenizer)
    template = template or detect(text)
    if template is None or template.header.search(text) is None:
        plain: str = tokenizer.decode(list(ids), skip_special_tokens=True)
        return [{"role": "tool", "content": plain.strip()}] if plain.strip() else [], ""
    turns = without_thoughts(read_answer(text, template))
    is_begun = bool(turns) and turns[-1].role == "assistant" and turns[-1].is_open
    begun = turns.pop().text if is_begun else ""
    found = [one for turn in turns for one in _by_tool(turn.role, turn.text)]
    return [one for one in found if one["content"].strip()], begun


def _continued(message: Message, rest: Message) -> Message:
    return {**message, "content": f"{message['content']}{rest['content']}"}


def _by_tool(role: str, content: str) -> list[dict[str, str]]:
    """A turn, or its results of tools as a message each."""
    if role != "user" or _RESULTS.fullmatch(content) is None:
        return [{"role": role, "content": content}]
    return [{"role": "tool", "content": result} for result in _RESULT.findall(content)]
