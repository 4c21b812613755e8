"""Which words of a completion are copied from its prompt."""

from __future__ import annotations

import re

from alarm_models.sample import Span

__all__ = ["copied_words"]

#: Words in a row that must stand alike in the prompt.
_ROW = 3

_WORD = re.compile(r"\w+")


def copied_words(prompt: str, completion: str) -> tuple[Span, ...]:
    """Find the words that stand in the prompt too, within the same three words in a row.

    Case and punctuation do not count. A grounded answer copies most of its words; what it makes up
    it does not.
    """
    said = [word.casefold() for word in _WORD.findall(prompt)]
    rows = {tuple(said[at : at + _ROW]) for at in range(len(said) - _ROW + 1)}
    words = [Span(*match.span()) for match in _WORD.finditer(completion)]
    texts = [completion[word.start : word.end].casefold() for word in words]
    copied: set[int] = set()
    for at in range(len(words) - _ROW + 1):
        if tuple(texts[at : at + _ROW]) in rows:
            copied.update(range(at, at + _ROW))
    return tuple(words[index] for index in sorted(copied))
