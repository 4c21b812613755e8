"""Token offsets of a completion of several messages."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.token_offsets import PolicyTokens, Span

# How many places of a text are tried: a policy may repeat one word without end.
_MOST_TRIED = 1000

#: Types of the parts of a content that are text.
TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal"})


def message_offsets(
    token_ids: Sequence[int], messages: Sequence[Mapping[str, Any]], tokens: PolicyTokens
) -> list[Span]:
    """One `[start, end)` per token of a completion that is sent as `messages`.

    `token_ids` are those of the whole completion, headers, calls and results of tools included. The
    spans count in `completion_text(messages)`: each thought and content is located in the decoded
    text, in order, and the tokens between them are empty spans after the text before them. A text
    that occurs several times is located after the special token that ends the message before it,
    and where it stands between white space or special tokens, if there is such a place for all.
    ValueError if a thought or a content is not in the decoded text.
    """
    text, spans = tokens.locate(token_ids)
    ends = sorted({start for start, end in spans if start == end} | {len(text)})
    places = _places(messages, text, ends) or _places(messages, text, None) or []
    return [_placed(span, places) for span in spans]


def completion_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text that spans and token offsets of messages count in.

    Of each message its thought, a blank line and its content, whichever there are; the messages
    are joined by blank lines. Tool calls are not part of it.
    """
    return "\n\n".join("\n\n".join(_texts(message)) for message in messages)


def _texts(message: Mapping[str, Any]) -> list[str]:
    """The thought and the content of a message, without those that are empty."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(_text_of(part) for part in content if part.get("type") in TEXT_PARTS)
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return [text for text in (thought, content or message.get("refusal") or "") if text]


def _text_of(part: Mapping[str, Any]) -> str:
    return part.get("text") or part.get("refusal") or ""


def _places(
    messages: Sequence[Mapping[str, Any]], text: str, ends: Sequence[int] | None
) -> list[tuple[int, int, int]] | None:
    """`(start, end, to)`: the range of the decoded text that is at `to` in the completion's.

    A message without a text has an empty range. `ends` are where special tokens are: texts are
    searched after the turn before them; None if one is not there. Without `ends`, a text is at
    its first place after the one before.
    """
    places: list[tuple[int, int, int]] = []
    cursor = to = 0
    role = None
    for index, message in enumerate(messages):
        is_new_turn = index > 0 and not role == message.get("role") == "tool"
        if ends is not None and is_new_turn:
            start, end, _ = places[-1]
            # A special token before a message without a text does not end it.
            after = bisect_left(ends, end if start < end else end + 1)
            cursor = ends[min(after, len(ends) - 1)]
        role = message.get("role")
        for part in _texts(message) or [""]:
            bare = part if text.find(part, cursor) >= 0 else part.strip()
            start = _alone(bare, text, cursor, ends)
            if start < 0 and ends is not None:
                return None
            if start < 0:
                raise ValueError(
                    f"message {index} is not in the decoded completion after character {cursor}: "
                    f"{part[:80]!r}"
                )
            places.append((start, start + len(bare), to + part.find(bare)))
            cursor = start + len(bare)
            to += len(part) + 2
    return places


def _alone(part: str, text: str, cursor: int, ends: Sequence[int] | None) -> int:
    """Where a text first stands between white space or `ends`, or else where it first is."""
    first = start = text.find(part, cursor)
    if ends is None or not part:
        return first
    for _ in range(_MOST_TRIED):
        if start < 0:
            break
        if _is_edge(start, text, ends, -1) and _is_edge(start + len(part), text, ends, 0):
            return start
        start = text.find(part, start + 1)
    return first


def _is_edge(at: int, text: str, ends: Sequence[int], side: int) -> bool:
    return at == 0 or ends[bisect_left(ends, at)] == at or text[at + side].isspace()


def _placed(span: Span, places: Sequence[tuple[int, int, int]]) -> Span:
    start, end = span
    before = 0
    for first, last, to in places:
        if start < end and start < last and first < end:
            return to + max(0, start - first), to + min(last, end) - first
        if last <= start:
            before = to + last - first
    return before, before
