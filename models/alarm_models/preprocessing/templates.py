"""Templates: a sample rendered as one text, with the spans of prompt and completion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import NamedTuple

from alarm_models.errors import RecipeError, SampleError
from alarm_models.preprocessing.patterns import TimedPattern
from alarm_models.types import Message, Sample, Span

__all__ = [
    "FieldPattern",
    "Rendered",
    "TextTemplate",
    "TypedSpan",
    "conversation",
    "num_prompt_messages",
    "with_prefill_as_completion",
    "without_prefill",
]


class TypedSpan(NamedTuple):
    """The characters ``[start, end)`` of a word, and the token type of its tokens."""

    start: int
    end: int
    token_type: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text, and the spans of prompt and completion in it.

    Truncation shortens the prompt. Tokens in ``typed_spans`` have the token type given there.
    ``anchor_positions`` are characters whose tokens are located, in order. ``copies`` are the
    earlier occurrences of a prompt that the text has more than once; all are truncated equally.
    ``kept`` is the number of characters at the end that truncation never drops. ``pair`` is a
    second text, the completion, which the tokenizer joins to the first. ``cuts`` are characters
    before which the text is split into parts that are tokenized separately. ``omitted`` names what
    the template left out of the messages.
    """

    text: str
    prompt: Span
    completion: Span
    typed_spans: tuple[TypedSpan, ...] | None = None
    anchor_positions: tuple[int, ...] = ()
    copies: tuple[Span, ...] = ()
    kept: int = 0
    pair: str | None = None
    cuts: tuple[int, ...] = ()
    omitted: tuple[str, ...] = ()

    def within(self, text: str, start: int) -> Rendered:
        """Shift the spans into a longer text that contains this one at ``start``."""
        prompt, completion, *copies = (
            Span(span.start + start, span.end + start)
            for span in (self.prompt, self.completion, *self.copies)
        )
        return Rendered(text, prompt, completion, copies=tuple(copies))

    def ended(self, strip: bool | str, suffix: str) -> Rendered:
        """Strip the end of the text and append ``suffix``.

        ``strip`` is a text to remove once, or True for whitespace. The suffix is not appended to a
        text that already ends with it, ignoring whitespace around it.
        """
        text = self.text
        if strip:
            text = text.rstrip() if strip is True else text.removesuffix(strip)
        end = len(text)
        kept = 0
        if suffix:
            core = suffix.strip() or suffix
            text, kept = (text, len(core)) if text.endswith(core) else (text + suffix, len(suffix))
        prompt, completion, *copies = (
            Span(min(span.start, end), min(span.end, end))
            for span in (self.prompt, self.completion, *self.copies)
        )
        return replace(
            self, text=text, prompt=prompt, completion=completion, copies=tuple(copies), kept=kept
        )


#: Time limit of a field's pattern on one prompt, in seconds.
_FIELD_TIMEOUT_S = 1.0

#: ``before\s*(.*?)\s*after``, the shape of the built-in recipes' patterns: two plain texts.
_BETWEEN = re.compile(r"([\w :#>-]*[\w:#>-])\\s\*\(\.\*\?\)\\s\*([\w:#>-][\w :#>-]*)")


@dataclass(frozen=True, slots=True)
class FieldPattern:
    """Finds a field in the prompt when a caller leaves it out.

    The field is the pattern's first group, or the whole prompt where the pattern finds nothing.
    Raises `RecipeError` for a pattern that cannot be read or has no group.
    """

    pattern: str

    def __post_init__(self) -> None:
        if self._compiled().num_groups < 1:
            raise RecipeError(
                f"the pattern {self.pattern!r} in [fields] has no group: add parentheses"
            )

    def find(self, prompt: str) -> str:
        """Return the field's text; raise `SampleError` if the search times out."""
        shape = _BETWEEN.fullmatch(self.pattern)
        if shape is not None:
            return _between(prompt, *shape.groups())
        match = self._compiled().search(prompt)
        # A group that did not participate in the match is None.
        return prompt if match is None else match.group(1) or ""

    def _compiled(self) -> TimedPattern:
        return TimedPattern(self.pattern, _FIELD_TIMEOUT_S, name="pattern in [fields]", dotall=True)


def _between(text: str, before: str, after: str) -> str:
    """Return what ``before\\s*(.*?)\\s*after`` finds, in time linear in the text.

    A regex engine tries every way to divide whitespace among the three parts, which takes cubic
    time.
    """
    start = text.find(before)
    end = text.find(after, start + len(before)) if start >= 0 else -1
    return text if end < 0 else text[start + len(before) : end].strip()


@dataclass(frozen=True, slots=True)
class _TemplatePart:
    literal: str
    name: str | None
    as_words: bool


class TextTemplate:
    """A text with placeholders: ``{prompt}``, ``{completion}`` and the names of fields.

    ``{name:words}`` inserts the words of a text joined by single spaces; ``{{`` is a brace. Texts
    are inserted unchanged: a placeholder inside a prompt is not replaced.
    """

    def __init__(self, template: str, *, fields: Mapping[str, FieldPattern] | None = None) -> None:
        self.names: tuple[str, ...]
        self._parts = _parse(template)
        self._fields = fields or {}
        self.names = tuple(part.name for part in self._parts if part.name is not None)

    def render(self, sample: Sample) -> Rendered:
        """Render a sample.

        Raises `SampleError` (``invalid_sample``) for a missing field.
        """
        text = ""
        spans: dict[str, Span] = {}
        prompts: list[Span] = []
        for part in self._parts:
            text += part.literal
            if part.name is None:
                continue
            value = self._value(part.name, sample)
            start = len(text)
            text += " ".join(value.split()) if part.as_words else value
            spans[part.name] = Span(start, len(text))
            if part.name == "prompt":
                prompts.append(spans["prompt"])
            if part.name in self._fields and part.name not in sample.fields:
                # A field found in the prompt is part of it and may be truncated.
                spans.setdefault("prompt", spans[part.name])
        nowhere = Span(0, 0)
        return Rendered(
            text,
            spans.get("prompt", nowhere),
            spans.get("completion", nowhere),
            copies=tuple(prompts[:-1]),
        )

    def question(self, sample: Sample) -> str:
        """Return the field `question` if the template names it, otherwise nothing."""
        return self._value("question", sample) if "question" in self.names else ""

    def _value(self, name: str, sample: Sample) -> str:
        if name == "prompt":
            return sample.prompt_text
        if name == "completion":
            return sample.completion_text
        if name in sample.fields:
            return sample.field_text(name)
        if name in self._fields:
            return self._fields[name].find(sample.prompt_text)
        raise SampleError(
            "invalid_sample",
            f"the model's template names {{{name}}}: send it in the sample's `fields`",
        )


def conversation(sample: Sample) -> tuple[Message, ...]:
    """Return the sample as messages: a user's prompt and an assistant's completion.

    If the completion continues the prompt's last message, the two are one. Raises `SampleError`
    (``invalid_sample``) if it cannot.
    """
    prompt = _as_messages(sample.prompt, "user")
    completion = _as_messages(sample.completion, "assistant")
    prefill = sample.prefill
    if prefill is None:
        return prompt + completion
    first, *others = completion or (Message(prefill.role, ""),)
    begun = replace(
        prefill,
        content=prefill.content + first.content,
        reasoning=prefill.reasoning + first.reasoning,
        tool_calls=first.tool_calls,
    )
    return (*prompt[:-1], begun, *others)


def num_prompt_messages(sample: Sample) -> int:
    """Return how many messages of the `conversation` belong to the prompt alone."""
    if isinstance(sample.prompt, str):
        return 1
    return len(sample.prompt) - sample.continue_final_message


def with_prefill_as_completion(sample: Sample) -> Sample:
    """Return a sample whose completion begins with the message of the prompt that it continues."""
    prefill = sample.prefill
    if prefill is None:
        return sample
    num_prompt = num_prompt_messages(sample)
    whole: str | tuple[Message, ...] = conversation(sample)[num_prompt:]
    if isinstance(sample.completion, str):
        whole = prefill.text + sample.completion
    return replace(
        sample,
        prompt=sample.prompt[:num_prompt],
        completion=whole,
        continue_final_message=False,
    )


def without_prefill(rendered: Rendered, prefill: Message | None) -> Rendered:
    """Return a rendered text whose completion begins after the message that it continues."""
    if prefill is None or rendered.pair is not None:
        return rendered
    start, end = rendered.completion
    for part in (prefill.reasoning, prefill.content):
        # Templates may drop the white space around a message.
        found = (
            at + len(core)
            for core in (part.lstrip(), part.strip())
            if core and (at := rendered.text.find(core, start, end)) >= 0
        )
        start = next(found, start)
    return replace(rendered, completion=Span(start, end))


def _as_messages(content: str | tuple[Message, ...], role: str) -> tuple[Message, ...]:
    return (Message(role, content),) if isinstance(content, str) else content


def _parse(template: str) -> tuple[_TemplatePart, ...]:
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise RecipeError(
            f"template {template!r} is invalid: {error}; literal braces are written "
            "twice: {{ and }}"
        ) from error
    parts = []
    for literal, name, modifier, conversion in parsed:
        if name is not None and not name.isidentifier():
            raise RecipeError(
                f"template {template!r} has {{{name}}}, which is not a name; literal braces "
                "are written twice: {{ and }}"
            )
        if conversion or modifier not in (None, "", "words"):
            raise RecipeError(f"template {template!r}: {{{name}}} may only be followed by :words")
        parts.append(_TemplatePart(literal, name, modifier == "words"))
    return tuple(parts)
