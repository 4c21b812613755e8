"""Finds where a chat template wrote the parts of a conversation, and which of them it left out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import NamedTuple

from alarm_models.preprocessing.find_thoughts import Tags, find_thoughts
from alarm_models.types import Message, Span

__all__ = [
    "ChatPart",
    "Skeleton",
    "common_ends",
    "skeleton",
]


class ChatPart(NamedTuple):
    """A part of a message: a thought, or what is said; ``at`` is its place in the message's text.

    ``name`` is what `omitted` calls it where the template leaves it out.
    """

    message: int
    at: int
    text: str
    name: str


class Skeleton(NamedTuple):
    """A conversation with marks in place of its parts; ``marks`` finds them in a rendered one."""

    messages: tuple[Message, ...]
    parts: tuple[ChatPart, ...]
    marks: re.Pattern[str]

    def places(self, rendered: str, text: str) -> list[Span | None]:
        """Return the place of each part in ``text``; None for one that it does not have.

        ``rendered`` is the skeleton, as the template renders it.
        """
        exact = self._exact(rendered, text, is_json=False) or self._exact(
            rendered, text, is_json=True
        )
        return exact or self._in_order(rendered, text)

    def _exact(self, rendered: str, text: str, *, is_json: bool) -> list[Span | None] | None:
        """Put the parts in place of the marks; None where that is not the text.

        Templates may write the results of tools as JSON.
        """
        places: list[Span | None] = [None] * len(self.parts)
        written: list[str] = []
        length = at = 0
        for match in self.marks.finditer(rendered):
            index = int(match[1])
            part = self.parts[index]
            is_result = is_json and part.name == "tool_results"
            core = json.dumps(part.text, ensure_ascii=False)[1:-1] if is_result else part.text
            before = rendered[at : match.start()]
            start = length + len(before)
            written += (before, core)
            places[index] = Span(start, start + len(core))
            length, at = start + len(core), match.end()
        written.append(rendered[at:])
        return places if "".join(written) == text else None

    def _in_order(self, rendered: str, text: str) -> list[Span | None]:
        """Search the parts one after another, where the template looks at what messages say."""
        places: list[Span | None] = [None] * len(self.parts)
        at = last = 0
        order = []
        for match in self.marks.finditer(rendered):
            order.append((int(match[1]), rendered[last : match.start()]))
            last = match.end()
        missing = set(range(len(self.parts))) - {index for index, _ in order}
        for index, before in order:
            if text.startswith(before, at):
                at += len(before)
            core = self.parts[index].text
            found = text.find(core, at)
            if found >= 0:
                places[index] = Span(found, found + len(core))
                at = found + len(core)
        for index in sorted(missing):
            # The marked conversation lacks it; the real one may have it.
            core = self.parts[index].text
            ends = [one.end for one in places[:index] if one is not None]
            found = text.find(core, max(ends, default=0))
            if found >= 0 and len(core) >= _LONG:
                places[index] = Span(found, found + len(core))
        return places


#: A shorter text may stand in a template by chance.
_LONG = 16


def skeleton(messages: Sequence[Message], num_prompt: int, tags: Tags) -> Skeleton:
    """Put a mark in place of each part of the messages, which occurs in none of them."""
    given = "".join(message.text for message in messages)
    prefix = next(name for at in count() if (name := f"Xq{at}w") not in given)
    parts: list[ChatPart] = []

    def marked(text: str, spans: Sequence[tuple[Span, str]], index: int, start: int) -> str:
        written, at = "", 0
        for span, name in spans:
            first, last = _trimmed(text, span)
            if first == last:
                continue
            written += f"{text[at:first]}{prefix}{len(parts)}y"
            parts.append(ChatPart(index, start + first, text[first:last], name))
            at = last
        return written + text[at:]

    marked_messages = []
    for index, message in enumerate(messages):
        name = _name(message, is_prompt=index < num_prompt)
        content, reasoning = message.content, message.reasoning
        shown = marked(reasoning, [(Span(0, len(reasoning)), "thinking")], index, 0)
        start = len(message.text) - len(content)
        spans = _spans(content, tags, name) if message.is_of_policy else [(_all(content), name)]
        said = marked(content, spans, index, start)
        marked_messages.append(replace(message, content=said, reasoning=shown))
    return Skeleton(tuple(marked_messages), tuple(parts), re.compile(rf"{prefix}(\d+)y"))


def _spans(content: str, tags: Tags, name: str) -> list[tuple[Span, str]]:
    spans = []
    at = 0
    for thought in find_thoughts(content, tags):
        spans += [(Span(at, thought.outer.start), name), (thought.inner, "thinking")]
        at = thought.outer.end
    return [*spans, (Span(at, len(content)), name)]


def _name(message: Message, *, is_prompt: bool) -> str:
    if message.is_of_policy:
        return "messages" if is_prompt else "answer"
    if message.role in ("system", "developer"):
        return "system"
    return "messages" if message.role == "user" else "tool_results"


def common_ends(text: str, other: str) -> Span:
    """Return the part of a text without what it has in common with another at both ends."""
    most = min(len(text), len(other))
    start = next((at for at in range(most) if text[at] != other[at]), most)
    left = most - start
    after = next((at for at in range(left) if text[-1 - at] != other[-1 - at]), left)
    return Span(start, len(text) - after)


def _all(text: str) -> Span:
    return Span(0, len(text))


def _trimmed(text: str, span: Span) -> Span:
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return Span(start, max(start, span.start + len(part.rstrip())))
