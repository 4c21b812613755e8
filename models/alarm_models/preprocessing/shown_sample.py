"""Views of samples for models: without the thoughts, system messages or parts they do not read.

A view is made once, before a model gets the sample. Spans that the model reports in the shown
completion are then mapped back to the completion as the caller sent it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Literal, NamedTuple

from alarm_models.errors import SampleError
from alarm_models.preprocessing.find_thoughts import (
    DEFAULT_TAGS,
    Tags,
    Thought,
    answer_spans,
    find_thoughts,
)
from alarm_models.types import Message, Sample, Shown, ShownPiece, Span

__all__ = ["SampleView", "Thinking", "ViewRules"]

Thinking = Literal["strip", "keep", "only"]

#: Joins the texts of messages, and of thoughts.
_JOINT = "\n\n"

#: Roles whose messages instruct the assistant.
_SYSTEM_ROLES = frozenset({"system", "developer"})


class SampleView(NamedTuple):
    """A sample as a model is shown it; ``shown`` is None if that is the whole sample."""

    sample: Sample
    shown: Shown | None


@dataclass(frozen=True, slots=True)
class ViewRules:
    """What a model reads of samples, by its recipe and its kind.

    ``is_text`` is for models that read texts rather than messages: they are shown no tools and no
    tool calls. ``policy_only`` leaves out messages of a completion that the policy did not write.
    """

    thinking: Thinking = "strip"
    think_tags: Tags = DEFAULT_TAGS
    keeps_system: bool = True
    omits_unsupported: bool = False
    is_text: bool = False
    policy_only: bool = False

    def view(self, sample: Sample) -> SampleView:
        """Return the view of a sample; raise `SampleError` (``unsupported_content``)."""
        omitted: set[str] = set()
        prompt = self._prompt(sample.prompt, omitted)
        completion = self._completion(sample.completion, self._opened_tag(sample), omitted)
        if self.is_text and sample.tools:
            omitted.add("tools")
        shown = sample if prompt is sample.prompt else replace(sample, prompt=prompt)
        if completion is None:
            return SampleView(shown, Shown(omitted=tuple(sorted(omitted))) if omitted else None)
        names = tuple(sorted(omitted))
        if completion.is_unchanged:
            return SampleView(shown, Shown(None, completion.judged, names))
        shown = replace(
            shown,
            completion=completion.content,
            token_offsets=completion.offsets(sample.token_offsets),
            segments=completion.segments(sample.segments),
        )
        return SampleView(shown, Shown(completion.pieces, completion.judged, names))

    def _opened_tag(self, sample: Sample) -> str:
        """Return the opening tag of a prefill that begins a thought; empty without one."""
        if not sample.continue_final_message or isinstance(sample.prompt, str):
            return ""
        content = sample.prompt[-1].content if sample.prompt else ""
        thoughts = find_thoughts(content, self.think_tags)
        if not thoughts or thoughts[-1].is_finished:
            return ""
        return content[thoughts[-1].outer.start : thoughts[-1].inner.start]

    def _prompt(
        self, prompt: str | tuple[Message, ...], omitted: set[str]
    ) -> str | tuple[Message, ...]:
        if isinstance(prompt, str):
            return prompt
        shown = []
        for message in prompt:
            if message.role in _SYSTEM_ROLES and not self.keeps_system:
                omitted.add("system")
                continue
            one = self._readable(message, omitted)
            if self.thinking != "keep" and one.is_of_policy:
                parts = self._answer(one)
                if parts is not None:
                    omitted |= parts.omitted
                    one = replace(one, content=parts.content, reasoning="")
            shown.append(one)
        same = len(shown) == len(prompt) and all(map(_is, shown, prompt))
        return prompt if same else tuple(shown)

    def _completion(
        self, completion: str | tuple[Message, ...], opened: str, omitted: set[str]
    ) -> _ShownCompletion | None:
        """Return what is shown of a completion; None if all is shown and the policy wrote it.

        ``opened`` is the tag of a thought that a prefill begins and its first message continues.
        """
        is_plain = isinstance(completion, str)
        messages = (
            (Message("assistant", completion),) if isinstance(completion, str) else completion
        )
        has_policy = any(message.is_of_policy for message in messages)
        shown = _ShownCompletion(is_joined=is_plain or self.policy_only)
        start = 0
        for given in messages:
            message = self._readable(given, omitted)
            shown.is_unchanged = shown.is_unchanged and message is given
            if given.is_of_policy or not has_policy:
                self._add(shown, message, start, opened if start == 0 else "", omitted)
            elif self.policy_only:
                omitted.add(_name_of(given.role))
                shown.is_unchanged = False
            else:
                shown.add(message, start, [Span(0, len(message.text))], is_judged=False)
                shown.has_others = True
            start += len(given.text) + len(_JOINT)
        return None if shown.is_unchanged and not shown.has_others else shown

    def _add(
        self, shown: _ShownCompletion, message: Message, start: int, opened: str, omitted: set[str]
    ) -> None:
        """Add what is shown of a message by the policy, which began at ``start``."""
        if self.policy_only and message.tool_calls:
            omitted.add("tool_calls")
        parts = self._policy_parts(message, opened)
        if parts is None:
            shown.add(message, start, [Span(0, len(message.text))])
            return
        shown.is_unchanged = False
        omitted |= parts.omitted
        calls = () if self.thinking == "only" else message.tool_calls
        one = replace(message, content=parts.content, reasoning="", tool_calls=calls)
        shown.add(one, start, parts.spans, joint=parts.joint)

    def _readable(self, message: Message, omitted: set[str]) -> Message:
        """Return a message with text parts only; raise `SampleError` if others must be kept."""
        if self.is_text and message.tool_calls:
            omitted.add("tool_calls")
        if not message.other_parts:
            return message
        if not self.omits_unsupported:
            raise SampleError(
                "unsupported_content",
                f"a message of role {message.role!r} has a part of type "
                f"{message.other_parts[0]!r}, but the model reads only text: send text parts, or "
                "set "
                '`unsupported_content = "omit"` for the model in the recipe to leave such parts '
                "out",
            )
        omitted.add("content_parts")
        return replace(message, other_parts=())

    def _policy_parts(self, message: Message, opened: str) -> _Parts | None:
        """Return what is shown of a message that the policy wrote; None if all of it."""
        if self.thinking == "keep":
            return None
        if self.thinking == "strip":
            return self._answer(message, opened)
        return self._thought(message, opened)

    def _thoughts(self, content: str, opened: str) -> list[Thought]:
        """Find the thoughts of a content that follows an opening tag, or none."""

        def own(span: Span) -> Span:
            return Span(max(0, span.start - len(opened)), max(0, span.end - len(opened)))

        found = find_thoughts(opened + content, self.think_tags)
        return [Thought(own(outer), own(inner), is_ended) for outer, inner, is_ended in found]

    def _answer(self, message: Message, opened: str = "") -> _Parts | None:
        content = message.content
        has_tag = any(tag in content for pair in self.think_tags for tag in pair)
        if not has_tag and not message.reasoning and not opened:
            return None
        thoughts = self._thoughts(content, opened)
        spans = answer_spans(content, thoughts) if thoughts else [Span(0, len(content))]
        is_thought = message.reasoning or any(content[a:b].strip() for _, (a, b), _ in thoughts)
        return _Parts(
            "".join(content[start:end] for start, end in spans),
            [_moved(span, _content_start(message)) for span in spans],
            frozenset({"thinking"} if is_thought else ()),
        )

    def _thought(self, message: Message, opened: str) -> _Parts:
        content, start = message.content, _content_start(message)
        thoughts = self._thoughts(content, opened)
        inner = [_trimmed(content, one.inner) for one in thoughts]
        spans = [Span(0, len(message.reasoning))] if message.reasoning else []
        spans += [_moved(span, start) for span in inner if span.start < span.end]
        omitted = {"answer"} if answer_spans(content, thoughts) else set()
        omitted |= {"tool_calls"} if message.tool_calls else set()
        text = message.text
        texts = [text[span.start : span.end] for span in spans]
        return _Parts(_JOINT.join(texts), spans, frozenset(omitted), len(_JOINT))


class _Parts(NamedTuple):
    """Parts of a message's text that are shown, ``joint`` characters apart."""

    content: str
    spans: list[Span]
    omitted: frozenset[str]
    joint: int = 0


class _ShownCompletion:
    """The shown messages of a completion, and where each part is in the completion as sent."""

    def __init__(self, *, is_joined: bool) -> None:
        #: Whether the text is as it was sent, and whether parts of it are not by the policy.
        self.is_unchanged = True
        self.has_others = False
        self._is_joined = is_joined
        self._messages: list[Message] = []
        self._length = 0
        self._pieces: list[ShownPiece] = []
        self._turns: list[Span] = []
        self._judged: list[Span] = []

    def add(
        self,
        message: Message,
        start: int,
        spans: Sequence[Span],
        *,
        joint: int = 0,
        is_judged: bool = True,
    ) -> None:
        """Add a message whose text is these parts of the original, which began at ``start``."""
        if self._is_joined and not message.text:
            return
        at = self._length + (len(_JOINT) if self._messages else 0)
        self._messages.append(message)
        self._length = at + len(message.text)
        self._turns.append(Span(at, self._length))
        for index, span in enumerate(spans):
            at += joint if index else 0
            length = span.end - span.start
            self._pieces.append(ShownPiece(at, start + span.start, length))
            if is_judged:
                self._judged.append(_moved(span, start))
            at += length

    @property
    def content(self) -> str | tuple[Message, ...]:
        """The completion as it is shown."""
        if not self._is_joined:
            return tuple(self._messages)
        return _JOINT.join(message.text for message in self._messages)

    @property
    def pieces(self) -> tuple[ShownPiece, ...]:
        """Where each shown character was sent."""
        return tuple(self._pieces)

    @property
    def judged(self) -> tuple[Span, ...]:
        """The parts that the policy wrote."""
        return tuple(self._judged)

    def offsets(self, offsets: Sequence[Span] | None) -> tuple[Span, ...] | None:
        """Return the policy's tokens that are shown, including special tokens of shown messages."""
        if offsets is None:
            return None
        return tuple(span for one in offsets for span in self._shown(one, is_token=True))

    def segments(self, segments: Mapping[str, Sequence[Span]]) -> dict[str, tuple[Span, ...]]:
        """Return the spans that the caller sent, as far as they are shown."""
        shown = {
            name: tuple(one for span in spans for one in self._shown(span, is_token=False))
            for name, spans in segments.items()
        }
        # The text of joined messages does not show where each begins.
        return {"turns": tuple(self._turns), **shown} if self._is_joined else shown

    def _shown(self, span: Span, *, is_token: bool) -> Iterator[Span]:
        first = bisect_left(self._pieces, span.start, key=_end)
        near = (self._pieces[at] for at in range(first, len(self._pieces)))
        if span.start == span.end:
            for shown, given, length in islice(near, 1) if is_token else ():
                if given <= span.start <= given + length:
                    at = shown + span.start - given
                    yield Span(at, at)
            return
        inside = [
            Span(shown + max(span.start - given, 0), shown + min(span.end - given, length))
            for shown, given, length in takewhile(lambda one: one.given < span.end, near)
            if span.start < given + length
        ]
        if inside:
            yield Span(inside[0].start, inside[-1].end)


def _end(piece: ShownPiece) -> int:
    return piece.given + piece.length


def _is(one: object, other: object) -> bool:
    return one is other


def _name_of(role: str) -> str:
    """Return the name in `omitted` of messages of a role."""
    if role in _SYSTEM_ROLES:
        return "system"
    return "messages" if role == "user" else "tool_results"


def _content_start(message: Message) -> int:
    """Return where the content begins in a message's text."""
    return len(message.text) - len(message.content)


def _moved(span: Span, by: int) -> Span:
    return Span(span.start + by, span.end + by)


def _trimmed(text: str, span: Span) -> Span:
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return Span(start, max(start, span.start + len(part.rstrip())))
