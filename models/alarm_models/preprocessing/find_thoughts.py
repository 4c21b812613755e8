"""Finds the thoughts of a completion: text between tags such as ``<think>`` and ``</think>``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from alarm_models.types import Span

__all__ = ["DEFAULT_TAGS", "Tags", "Thought", "answer_spans", "find_thoughts"]

#: Pairs of an opening and a closing tag.
Tags = tuple[tuple[str, str], ...]

DEFAULT_TAGS: Tags = (("<think>", "</think>"),)


class Thought(NamedTuple):
    """A thought's place in a text: with its tags, and without. An unfinished one has no end tag."""

    outer: Span
    inner: Span
    is_finished: bool


def find_thoughts(text: str, tags: Tags) -> list[Thought]:
    """Find the thoughts of a text, in order.

    A closing tag without an opening one ends a thought that began at the start of the text, or
    after the last thought: templates may write the opening tag into the prompt. After an opening
    tag without a closing one, the rest of the text is a thought.
    """
    kinds = {pair[0]: (index, True) for index, pair in enumerate(tags)}
    kinds |= {pair[1]: (index, False) for index, pair in enumerate(tags)}
    found: list[Thought] = []
    opened: tuple[int, Span] | None = None
    after_last = 0
    for match in _pattern(tags).finditer(text):
        index, opens = kinds[match.group()]
        start, end = match.span()
        if opens:
            opened = opened or (index, Span(start, end))
        elif opened is None:
            found.append(Thought(Span(after_last, end), Span(after_last, start), True))
            after_last = end
        elif opened[0] == index:
            found.append(Thought(Span(opened[1].start, end), Span(opened[1].end, start), True))
            opened, after_last = None, end
    if opened is not None:
        end = len(text)
        found.append(Thought(Span(opened[1].start, end), Span(opened[1].end, end), False))
    return found


def answer_spans(text: str, thoughts: Sequence[Thought]) -> list[Span]:
    """Return the parts of a text that are not thoughts, without the white space around thoughts.

    Between two parts white space remains: what is before the thought, else what is after it.
    """
    starts = [0, *(one.outer.end for one in thoughts)]
    ends = [*(one.outer.start for one in thoughts), len(text)]
    parts = [Span(*pair) for pair in zip(starts, ends, strict=True)]
    kept: list[Span] = []
    for start, end in parts:
        part = text[start:end]
        if not part.strip():
            continue
        is_separated = not kept or text[kept[-1].end - 1].isspace()
        if start > 0 and is_separated:
            start += len(part) - len(part.lstrip())
        kept.append(Span(start, end))
    if kept and kept[-1].end < len(text):
        start, end = kept[-1]
        kept[-1] = Span(start, start + len(text[start:end].rstrip()))
    return kept


@lru_cache(maxsize=64)
def _pattern(tags: Tags) -> re.Pattern[str]:
    texts = sorted({tag for pair in tags for tag in pair}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)))
