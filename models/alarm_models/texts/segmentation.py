"""Where the segments of a completion begin and end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sentencex import get_sentence_boundaries

from alarm_models.sample import Span

__all__ = ["SEGMENTERS", "sentences", "split_sentences", "steps", "subsentences"]

#: The fewest words a sub-sentence has before its break; more than as many follow it
#: (FineGrainedRLHF, reward.py).
MIN_WORDS = 5

_WORD = re.compile(r"\S+")

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def sentences(text: str) -> tuple[Span, ...]:
    """Find the sentences of an English text; white space around them belongs to none."""
    found = (
        _trimmed(text, Span(boundary["start_index"], boundary["end_index"]))
        for boundary in get_sentence_boundaries("en", text)
    )
    return tuple(span for span in found if span.start < span.end)


def subsentences(text: str) -> tuple[Span, ...]:
    """Find the sub-sentences of an English text: its sentences, split at ``, ; ! ?``."""
    return split_sentences(text, sentences(text))


def steps(text: str) -> tuple[Span, ...]:
    """Find the steps of a solution: what blank lines set apart."""
    breaks = [Span(*match.span()) for match in _BLANK_LINES.finditer(text)]
    starts = [0, *(one.end for one in breaks)]
    ends = [*(one.start for one in breaks), len(text)]
    found = (_trimmed(text, Span(*pair)) for pair in zip(starts, ends, strict=True))
    return tuple(span for span in found if span.start < span.end)


def split_sentences(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Split each sentence at the words that end with ``, ; ! ?``.

    A part has at least five words, and more than five follow a break. A part in the middle that is
    shorter joins the one before it; a first part that is shorter goes on
    (FineGrainedRLHF, ``split_text_to_subsentences``).
    """
    return tuple(part for span in spans for part in _split_sentence(text, span))


def _split_sentence(text: str, sentence: Span) -> list[Span]:
    words = [Span(*m.span()) for m in _WORD.finditer(text, sentence.start, sentence.end)]
    if not words:
        return []
    starts = [0]
    for index in range(1, len(words)):
        ends_part = text[words[index - 1].end - 1] in ",;!?"
        if not ends_part or len(words) - index <= MIN_WORDS:
            continue
        if index - starts[-1] >= MIN_WORDS:
            starts.append(index)
        elif len(starts) > 1:
            starts[-1] = index
    ends = [start - 1 for start in starts[1:]] + [len(words) - 1]
    return [
        Span(words[first].start, words[last].end) for first, last in zip(starts, ends, strict=True)
    ]


def _trimmed(text: str, span: Span) -> Span:
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return Span(start, max(start, span.start + len(part.rstrip())))


#: The segmenters that a recipe and a sample's ``segments`` may name.
SEGMENTERS: Mapping[str, Callable[[str], tuple[Span, ...]]] = {
    "sentences": sentences,
    "subsentences": subsentences,
    "steps": steps,
}
