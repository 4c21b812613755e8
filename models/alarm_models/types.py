"""Inputs and results: Sample, Span, Message, ToolCall, Score, AspectReward, Reward."""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import eq
from typing import Any, Literal, NamedTuple, overload

from alarm_models.errors import SampleError

__all__ = [
    "AspectReward",
    "AspectValues",
    "Dtype",
    "EndpointFailure",
    "JudgeTotals",
    "JudgeUsage",
    "Message",
    "PackedSpans",
    "Reward",
    "Sample",
    "Score",
    "SegmentScore",
    "Shown",
    "ShownPiece",
    "Span",
    "ToolCall",
]


#: The dtype in which a model runs; ``auto`` is float32 on a CPU and bfloat16 on a GPU.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Span(NamedTuple):
    """Characters ``[start, end)`` of a text, counted in Unicode code points."""

    start: int
    end: int


class PackedSpans(Sequence[Span]):
    """Spans as one array of numbers, start and end in turn: a fifth of the memory of tuples."""

    __slots__ = ("_flat",)

    def __init__(self, flat: array[int]) -> None:
        self._flat = flat

    def __len__(self) -> int:
        """How many spans there are."""
        return len(self._flat) // 2

    @overload
    def __getitem__(self, index: int) -> Span: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Span, ...]: ...

    def __getitem__(self, index: int | slice) -> Span | tuple[Span, ...]:
        """Return a span, or several as a tuple."""
        if isinstance(index, slice):
            return tuple(self[at] for at in range(*index.indices(len(self))))
        at = range(len(self))[index]
        return Span(self._flat[2 * at], self._flat[2 * at + 1])

    def __iter__(self) -> Iterator[Span]:
        """Iterate over the spans."""
        numbers = iter(self._flat)
        return map(Span, numbers, numbers)

    def __eq__(self, other: object) -> bool:
        """Say whether these are the same spans, packed or not."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(eq, self, other))

    def __hash__(self) -> int:
        """Compare with a tuple of spans."""
        return hash(tuple(self))


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant; ``arguments`` is JSON, as OpenAI's API sends it."""

    name: str
    arguments: str
    id: str | None = None


#: Roles of messages that the policy does not write.
_OTHER_ROLES = frozenset(
    {"system", "developer", "user", "tool", "function", "ipython", "environment", "observation"}
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    ``content`` is its text, empty where the request had null; ``reasoning`` the thought before it.
    ``other_parts`` are the types of content parts that are not text, such as ``image_url``.
    """

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    other_parts: tuple[str, ...] = ()

    @property
    def is_of_policy(self) -> bool:
        """Whether the policy wrote it, rather than a user, a tool or the system."""
        return self.role not in _OTHER_ROLES

    @property
    def text(self) -> str:
        """What the message contributes to the text of a prompt or completion.

        The reasoning, a blank line, and the content. Calls of tools are not part of it.
        """
        return "\n\n".join(filter(None, (self.reasoning, self.content)))


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one completion.

    ``fields`` holds further JSON values, of which templates name texts; ``token_offsets`` one span
    of the completion a policy token; ``segments`` spans that replace the server's own finding, by
    the segmenter's name; ``group`` marks samples of one prompt, ``group_size`` how many there are.
    ``tools`` are the JSON descriptions of the tools that the policy could call. ``finish_reason``
    says why the policy stopped, ``"length"`` if it reached its limit. With
    ``continue_final_message`` the completion continues the last message of the prompt.
    ``prefix_segmenter`` requests the scores of the completion's prefixes, each cut after one of its
    segments.
    """

    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    token_offsets: Sequence[Span] | None = None
    segments: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    id: str | None = None
    group: str | None = None
    group_size: int | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = None
    prefix_segmenter: str | None = None
    continue_final_message: bool = False

    @property
    def prompt_text(self) -> str:
        """The prompt as one text; messages are joined by blank lines."""
        return _as_text(self.prompt)

    @property
    def prompt_with_roles(self) -> str:
        """The prompt as one text, in which several messages have their roles before them."""
        if isinstance(self.prompt, str) or len(self.prompt) < 2:
            return self.prompt_text
        return "\n\n".join(f"{one.role}: {one.text}" for one in self.prompt)

    @property
    def completion_text(self) -> str:
        """The text that spans and token offsets count in."""
        return _as_text(self.completion)

    @property
    def prefill(self) -> Message | None:
        """The last message of the prompt, if the completion continues it.

        Raises `SampleError` (``invalid_sample``) if it cannot.
        """
        if not self.continue_final_message:
            return None
        last = None if isinstance(self.prompt, str) or not self.prompt else self.prompt[-1]
        if last is None or not last.is_of_policy or last.tool_calls:
            raise SampleError(
                "invalid_sample",
                "continue_final_message requires a prompt of messages, of which the last is the "
                "assistant's and has no tool calls",
            )
        first = None if isinstance(self.completion, str) else next(iter(self.completion), None)
        if first is not None and not first.is_of_policy:
            raise SampleError(
                "invalid_sample",
                "continue_final_message requires a completion that begins with what the assistant "
                f"says, and its first message is of role {first.role!r}",
            )
        return last

    @property
    def turns(self) -> tuple[Span, ...]:
        """The texts of the messages of the completion that the policy wrote: a plain text is one.

        They are spans of `completion_text`. The caller may send others as ``segments.turns``.
        """
        if "turns" in self.segments:
            return tuple(self.segments["turns"])
        if isinstance(self.completion, str):
            return (Span(0, len(self.completion)),)
        spans = []
        start = 0
        for message in self.completion:
            end = start + len(message.text)
            if message.is_of_policy:
                spans.append(Span(start, end))
            start = end + 2  # the blank line between two
        return tuple(spans)

    def field_text(self, name: str) -> str:
        """Return a field that is a text; raise `SampleError` (``invalid_sample``) for other JSON.

        Raises `KeyError` where the sample has no such field.
        """
        value = self.fields[name]
        if not isinstance(value, str):
            raise SampleError(
                "invalid_sample",
                f"fields.{name} is used as a text, and is a JSON {_json_type(value)}: send a text",
            )
        return value


def _json_type(value: object) -> str:
    if isinstance(value, Mapping):
        return "object"
    if isinstance(value, list | tuple):
        return "list"
    return "null" if value is None else "boolean" if isinstance(value, bool) else "number"


def _as_text(content: str | tuple[Message, ...]) -> str:
    if isinstance(content, str):
        return content
    return "\n\n".join(message.text for message in content)


def num_characters(sample: Sample) -> int:
    """Count the characters of a sample's texts, fields and tools included."""
    contents = (sample.prompt, sample.completion)
    return (
        sum(len(one) for one in contents if isinstance(one, str))
        + sum(num_characters_of(one) for one in contents if not isinstance(one, str))
        + sum(map(_num_json_characters, sample.fields.values()))
        + num_characters_of((), sample.tools)
    )


def num_characters_of(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> int:
    """Count the characters of messages and tools."""
    return sum(map(_num_json_characters, tools)) + sum(
        len(message.content)
        + len(message.reasoning)
        + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        for message in messages
    )


def _num_json_characters(value: object) -> int:
    return len(value) if isinstance(value, str) else len(json.dumps(value))


@dataclass(frozen=True, slots=True)
class SegmentScore:
    """A model's judgment of one segment.

    ``score`` is the margin: the positive label's logit less the negative's. Both it and ``label``
    are None where truncation left the segment unread. A segment that is graded rather than judged
    has a ``score``, and None for ``is_positive``.
    """

    span: Span
    label: str | None
    score: float | None
    is_positive: bool | None


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """What judges behind endpoints were asked: requests, tokens and money.

    ``num_cached`` counts the questions whose answer was stored; these use no tokens.
    """

    num_requests: int = 0
    num_cached: int = 0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: JudgeUsage) -> JudgeUsage:
        """Add up two usages."""
        return JudgeUsage(
            self.num_requests + other.num_requests,
            self.num_cached + other.num_cached,
            self.num_input_tokens + other.num_input_tokens,
            self.num_output_tokens + other.num_output_tokens,
            self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True)
class JudgeTotals:
    """What a model's judge was asked since it was opened, unanswered requests included."""

    usage: JudgeUsage = JudgeUsage()
    num_failed: int = 0
    num_unread: int = 0
    num_hedged: int = 0
    num_over_budget: int = 0


@dataclass(frozen=True, slots=True)
class EndpointFailure:
    """A request to a model behind an endpoint that gave no usable answer.

    ``reason`` is ``no_answer``, ``budget_exceeded``, ``unknown_format``, ``cut_off``, ``refused``
    or ``unreadable``. ``message`` contains no text of a sample, and is empty where it might.
    """

    endpoint: str
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The number a model gives a completion, with its segments if the model judges segments.

    ``num_tokens`` counts the tokens of the sample as the model reads it alone,
    ``num_computed_tokens`` those that the device ran for it: fewer where it shared some.
    ``outputs`` are the numbers of a model that gives several, by their names. ``omitted`` says what
    the model was not shown, such as ``thinking`` or ``prompt_start``. ``judged`` are the parts of
    the completion that the policy wrote and the model was shown; None for all of it.
    ``judge_usage`` is what a judge behind an endpoint was asked for this score.
    ``output_segments`` are the segments of outputs that have their own, by name; each gets its
    share of the output's value. ``skipped`` names the outputs that were not judged. With
    ``is_divided`` the segments share one value rather than adding up.

    ``prefixes`` are the scores of the completion's prefixes, where they were requested: of the
    empty one, and of those cut after each segment but the last, which is the whole completion.
    Each segment then has the score of the completion up to its end.
    """

    value: float | None
    segments: tuple[SegmentScore, ...] | None
    num_tokens: int
    truncated: bool
    num_computed_tokens: int = 0
    outputs: Mapping[str, float] | None = None
    omitted: tuple[str, ...] = ()
    prefixes: tuple[Score, ...] = ()
    judged: tuple[Span, ...] | None = None
    judge_usage: JudgeUsage | None = None
    output_segments: Mapping[str, tuple[SegmentScore, ...]] | None = None
    skipped: tuple[str, ...] = ()
    is_divided: bool = False

    @property
    def is_graded(self) -> bool:
        """Whether its segments are graded rather than judged; False if none was read."""
        segments = [*(self.segments or ()), *chain(*(self.output_segments or {}).values())]
        return any(one.score is not None and one.is_positive is None for one in segments)

    def with_prefixes(self, prefixes: Sequence[Score], spans: Sequence[Span]) -> Score:
        """Return this score of a whole completion with those of its prefixes, the empty one first.

        ``spans`` are the segments, as many as prefixes.
        """
        segments = tuple(
            SegmentScore(span, None, score.value, None)
            for span, score in zip(spans, (*prefixes[1:], self), strict=True)
        )
        return replace(self, segments=segments, prefixes=tuple(prefixes))

    def output(self, name: str | None) -> Score:
        """Return the score that one named output is; None is this score itself.

        Raises `SampleError` (``model_failed``) where the model has no such output.
        """
        if name is None:
            return self
        if name in self.skipped:
            return replace(self, value=None, segments=None, prefixes=())
        if self.outputs is None or name not in self.outputs:
            there = ", ".join(self.outputs or ()) or "none"
            raise SampleError("model_failed", f"the model has no output {name!r}; it has {there}")
        segments = (self.output_segments or {}).get(name)
        found = replace(
            self,
            value=self.outputs[name],
            segments=segments,
            prefixes=(),
            is_divided=segments is not None,
        )
        if not self.prefixes:
            return found
        spans = [segment.span for segment in self.segments or ()]
        return found.with_prefixes([one.output(name) for one in self.prefixes], spans)


class ShownPiece(NamedTuple):
    """A run of characters of a shown completion, and where it is in the one that was sent."""

    shown: int
    given: int
    length: int


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model was shown of a sample, and where that is in the completion that was sent.

    ``pieces`` are None where the completion's text was shown as it was sent. ``judged`` are the
    parts of the sent completion that the policy wrote and the model was shown; None for all of it.
    ``omitted`` names what was left out.
    """

    pieces: tuple[ShownPiece, ...] | None = None
    judged: tuple[Span, ...] | None = None
    omitted: tuple[str, ...] = ()

    def score_of_given(self, score: Score) -> Score:
        """Return a score of the shown completion as one of the completion that was sent."""
        segments, of_outputs = score.segments, score.output_segments
        if self.pieces is not None:
            segments = None if segments is None else self._segments_of_given(segments)
            if of_outputs is not None:
                of_outputs = {
                    name: self._segments_of_given(some) for name, some in of_outputs.items()
                }
        omitted = tuple(sorted({*score.omitted, *self.omitted}))
        return replace(
            score,
            segments=segments,
            omitted=omitted,
            judged=self.judged,
            output_segments=of_outputs,
        )

    def _segments_of_given(self, segments: Sequence[SegmentScore]) -> tuple[SegmentScore, ...]:
        return tuple(replace(one, span=self.to_given(one.span)) for one in segments)

    def to_given(self, span: Span) -> Span:
        """Return where a span of the shown completion is in the one that was sent."""
        if self.pieces is None:
            return span
        start = self._to_given(span.start)
        num_before = bisect_left(self.pieces, span.end, key=_shown_start)
        if span.end <= span.start or not num_before:
            return Span(start, start)
        shown, given, length = self.pieces[num_before - 1]
        return Span(start, max(start, given + min(span.end - shown, length)))

    def _to_given(self, at: int) -> int:
        """Return where a character was; of text between two pieces, the start of the second."""
        pieces = self.pieces or ()
        index = bisect_left(pieces, at, key=_last_shown)
        if index < len(pieces):
            shown, given, _ = pieces[index]
            return given + max(at - shown, 0)
        return pieces[-1].given + pieces[-1].length if pieces else 0


def _shown_start(piece: ShownPiece) -> int:
    return piece.shown


def _last_shown(piece: ShownPiece) -> int:
    """Return the last shown character of a piece; of an empty one, where it is."""
    return piece.shown + max(piece.length - 1, 0)


@dataclass(frozen=True, slots=True)
class AspectValues:
    """The values that an aspect gives a score, before and after shaping.

    The three lists have the same length: one entry per judged segment, or per token. A span of None
    is the whole completion. A shaped value is divided by ``divisor`` to become a reward.
    ``num_tokens`` are the tokens that were judged, or the words without policy tokens. With
    ``is_divided`` the segments share one value rather than adding up.
    """

    spans: Sequence[Span | None]
    raw: Sequence[float]
    shaped: Sequence[float]
    divisor: int = 1
    num_tokens: int = 0
    is_divided: bool = False

    @property
    def rewards(self) -> Sequence[float]:
        """The rewards of the segments, or of the tokens."""
        if self.divisor == 1:
            return self.shaped
        return [value / self.divisor for value in self.shaped]


@dataclass(frozen=True, slots=True)
class AspectReward:
    """What one aspect says, shaped, before its weight.

    ``token_rewards`` has one float a policy token, or is None without token offsets. ``value`` is
    the mean of the shaped values that make up the reward, ``level`` the same before shaping; both
    are None where there was nothing to judge. ``shaped_values`` are those values, in order.
    ``values`` has them with their spans, None where a reward is spread over prefixes. ``judged`` is
    as in `Score`.
    """

    reward: float
    token_rewards: tuple[float, ...] | None
    segments: tuple[SegmentScore, ...] | None
    value: float | None = None
    level: float | None = None
    truncated: bool = False
    shaped_values: tuple[float, ...] = ()
    omitted: tuple[str, ...] = ()
    values: AspectValues | None = field(default=None, compare=False)
    judged: tuple[Span, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Reward:
    """The number a trainer gets for a sample, and its parts.

    ``holistic_segments`` has the scores of the completion's prefixes where the holistic reward is
    spread over them.
    """

    reward: float
    token_rewards: tuple[float, ...] | None
    holistic_score: float
    holistic_normalized: float
    admitted: bool
    aspects: Mapping[str, AspectReward | None]
    truncated: bool
    omitted: tuple[str, ...] = ()
    holistic_segments: tuple[SegmentScore, ...] | None = None


def require_spans_within(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise `SampleError` unless every span lies within the text and starts never decrease."""
    last_start = 0
    for index, (start, end) in enumerate(spans):
        if not 0 <= start <= end <= len(text):
            raise _misplaced(name, index, start, end, text)
        if start < last_start:
            raise SampleError(
                "invalid_sample",
                f"{name}[{index}] starts at {start}, before {name}[{index - 1}] at {last_start}",
            )
        last_start = start


def require_starts_within(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise `SampleError` unless every span begins within the text.

    A checker's errors come in any order, overlap, and may reach past the end.
    """
    for index, (start, end) in enumerate(spans):
        if not 0 <= start <= min(end, len(text)):
            raise _misplaced(name, index, start, end, text)


def _misplaced(name: str, index: int, start: int, end: int, text: str) -> SampleError:
    place = f"{name}[{index}] is [{start}, {end}]"
    if end < start:
        return SampleError("invalid_sample", f"{place}, which ends before it starts")
    characters = "1 character" if len(text) == 1 else f"{len(text)} characters"
    return SampleError("invalid_sample", f"{place}, but the completion has {characters}")
