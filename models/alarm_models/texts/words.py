"""A sample split on white space: the words before its segments, then each segment's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from alarm_models.sample import Sample, Span
from alarm_models.texts.copying import copied_words
from alarm_models.texts.template import Rendered

__all__ = ["Laid", "Words", "split_words"]

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Laid:
    """Token ids with a separator before each segment.

    ``separators`` are the separators' places; ``prompt`` the range of tokens that came from the
    prompt; ``types`` is 1 for tokens of copied words.
    """

    ids: list[int]
    types: list[int]
    separators: list[int]
    prompt: Span


@dataclass(frozen=True, slots=True)
class Words:
    """A sample's words, in order.

    ``firsts`` holds the index of each segment's first word; ``prompt`` is the range of words that
    came from the prompt; ``copied`` the words that the completion copied from it.
    """

    segments: tuple[Span, ...]
    words: list[str]
    firsts: list[int]
    prompt: Span
    copied: frozenset[int]

    def lay(self, ids: Sequence[int], owners: Sequence[int], separator: int) -> Laid:
        """Put a separator before each segment; ``owners`` holds the word that each id is of."""
        laid = Laid([], [], [], Span(0, 0))
        inside: list[int] = []
        # A last owner past all words lets the separators of segments without words in.
        for token, owner in zip((*ids, None), (*owners, len(self.words)), strict=True):
            while (
                len(laid.separators) < len(self.firsts)
                and owner >= self.firsts[len(laid.separators)]
            ):
                laid.separators.append(len(laid.ids))
                laid.ids.append(separator)
                laid.types.append(0)
            if token is None:
                break
            if self.prompt.start <= owner < self.prompt.end:
                inside.append(len(laid.ids))
            laid.ids.append(token)
            laid.types.append(int(owner in self.copied))
        prompt = Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)
        return Laid(laid.ids, laid.types, laid.separators, prompt)


def split_words(prefix: Rendered, sample: Sample, segments: tuple[Span, ...]) -> Words:
    """Split the text before the segments, and each segment, on white space."""
    spans = [Span(*match.span()) for match in _WORD.finditer(prefix.text)]
    words = [prefix.text[span.start : span.end] for span in spans]
    inside = [
        index
        for index, span in enumerate(spans)
        if prefix.prompt.start <= span.start and span.end <= prefix.prompt.end
    ]
    text = sample.completion_text
    places = {at for span in copied_words(sample.prompt_text, text) for at in range(*span)}
    firsts: list[int] = []
    copied: set[int] = set()
    for segment in segments:
        firsts.append(len(words))
        for match in _WORD.finditer(text, segment.start, segment.end):
            if not places.isdisjoint(range(*match.span())):
                copied.add(len(words))
            words.append(match.group())
    prompt = Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)
    return Words(segments, words, firsts, prompt, frozenset(copied))
