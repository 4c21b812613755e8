"""Samples and scores as JSON, in the shape of `/score`: for other servers and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alarm_models.types import Message, Sample, Score, SegmentScore, Span, ToolCall

__all__ = [
    "message_to_json",
    "number",
    "sample_from_json",
    "sample_to_json",
    "score_from_json",
    "whole_number",
    "writable",
]

#: Larger counts are no counts; floats hold this one exactly.
_MOST = 2**53


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Return a sample as the JSON object of a request; what it does not have is left out."""
    encoded: dict[str, Any] = {
        "prompt": _content_to_json(sample.prompt),
        "completion": _content_to_json(sample.completion),
    }
    if sample.fields:
        encoded["fields"] = dict(sample.fields)
    if sample.segments:
        encoded["segments"] = {name: list(spans) for name, spans in sample.segments.items()}
    if sample.token_offsets is not None:
        encoded["token_offsets"] = list(sample.token_offsets)
    if sample.tools:
        encoded["tools"] = list(sample.tools)
    if sample.continue_final_message:
        encoded["continue_final_message"] = True
    names = {
        "id": sample.id,
        "group": sample.group,
        "group_size": sample.group_size,
        "finish_reason": sample.finish_reason,
    }
    return encoded | {key: name for key, name in names.items() if name is not None}


def sample_from_json(encoded: Mapping[str, Any]) -> Sample:
    """Return the sample that `sample_to_json` encoded."""
    offsets = encoded.get("token_offsets")
    return Sample(
        prompt=_content_from_json(encoded["prompt"]),
        completion=_content_from_json(encoded["completion"]),
        fields=encoded.get("fields", {}),
        token_offsets=None if offsets is None else tuple(Span(*pair) for pair in offsets),
        segments={
            name: tuple(Span(*pair) for pair in pairs)
            for name, pairs in encoded.get("segments", {}).items()
        },
        id=encoded.get("id"),
        group=encoded.get("group"),
        group_size=encoded.get("group_size"),
        tools=tuple(encoded.get("tools", ())),
        finish_reason=encoded.get("finish_reason"),
        continue_final_message=encoded.get("continue_final_message", False),
    )


def score_from_json(row: Mapping[str, Any], *, is_graded: bool = False) -> Score:
    """Return a score of a response, for a row without an error.

    ``is_graded`` is for rows of servers that do not say whether segments are graded. Raises
    `KeyError`, `TypeError` or `ValueError` where the row is not a score. Numbers may be infinite or
    NaN.
    """
    is_graded = is_graded or row.get("graded") is True
    outputs, of_outputs = row.get("outputs"), row.get("output_segments")
    return Score(
        _number_or_none(row["score"]),
        _segments(row["segments"], is_graded=is_graded),
        whole_number(row["num_tokens"]),
        row["truncated"] is True,
        outputs=None
        if outputs is None
        else {writable(name): number(value) for name, value in outputs.items()},
        omitted=tuple(map(writable, row.get("omitted") or ())),
        judged=_spans_or_none(row.get("judged")),
        output_segments=None
        if of_outputs is None
        else {
            writable(name): _segments(some, is_graded=is_graded) or ()
            for name, some in of_outputs.items()
        },
        skipped=tuple(map(writable, row.get("skipped") or ())),
    )


def writable(value: object) -> str:
    """Return a text that JSON can be written of: lone surrogates are replaced."""
    return str(value).encode("utf-8", "replace").decode()


def number(value: object) -> float:
    """Return a number of a response; raise `TypeError` for others, including digits as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number was expected, not a {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def whole_number(value: object) -> int:
    """Return an integer of a response that is at least 0; raise `TypeError` for others."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise TypeError("an integer was expected")
    return value


def _number_or_none(value: object) -> float | None:
    return None if value is None else number(value)


def _spans_or_none(pairs: Any) -> tuple[Span, ...] | None:
    if pairs is None:
        return None
    return tuple(Span(whole_number(start), whole_number(end)) for start, end in pairs)


def _segments(rows: Any, *, is_graded: bool) -> tuple[SegmentScore, ...] | None:
    return None if rows is None else tuple(_segment(one, is_graded=is_graded) for one in rows)


def _segment(row: Any, *, is_graded: bool) -> SegmentScore:
    """Return a segment with its verdict, which responses do not have.

    Grades have none. A margin of two labels is positive above 0; a tie is negative. A label without
    a score is an error that a check found; without both, the model did not read the segment.
    """
    span = Span(whole_number(row["start"]), whole_number(row["end"]))
    label = None if row["label"] is None else writable(row["label"])
    score = _number_or_none(row["score"])
    if is_graded:
        verdict = None
    elif score is None:
        verdict = None if label is None else False
    else:
        verdict = score > 0
    return SegmentScore(span, label, score, verdict)


def _content_to_json(content: str | tuple[Message, ...]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [message_to_json(one) for one in content]


def message_to_json(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI's API writes it; what it does not have is left out."""
    encoded: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.other_parts:
        text = [{"type": "text", "text": message.content}] if message.content else []
        encoded["content"] = [*text, *({"type": kind} for kind in message.other_parts)]
    if message.reasoning:
        encoded["reasoning_content"] = message.reasoning
    if message.tool_calls:
        encoded["tool_calls"] = [_call_to_json(call) for call in message.tool_calls]
    names = {"tool_call_id": message.tool_call_id, "name": message.name}
    return encoded | {key: name for key, name in names.items() if name is not None}


def _call_to_json(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    encoded: dict[str, Any] = {"type": "function", "function": function}
    return encoded if call.id is None else {"id": call.id, **encoded}


def _content_from_json(encoded: str | list[dict[str, Any]]) -> str | tuple[Message, ...]:
    return encoded if isinstance(encoded, str) else tuple(map(_message_from_json, encoded))


def _message_from_json(encoded: Mapping[str, Any]) -> Message:
    content = encoded["content"]
    parts = [] if isinstance(content, str) else content
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return Message(
        encoded["role"],
        content if isinstance(content, str) else "".join(texts),
        reasoning=encoded.get("reasoning_content", ""),
        tool_calls=tuple(map(_call_from_json, encoded.get("tool_calls", ()))),
        tool_call_id=encoded.get("tool_call_id"),
        name=encoded.get("name"),
        other_parts=tuple(part["type"] for part in parts if part["type"] != "text"),
    )


def _call_from_json(encoded: Mapping[str, Any]) -> ToolCall:
    function = encoded["function"]
    return ToolCall(function["name"], function["arguments"], encoded.get("id"))
