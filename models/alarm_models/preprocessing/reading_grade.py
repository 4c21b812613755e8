"""The Flesch-Kincaid grade of an English text.

    grade = 0.39 * words / sentences + 11.8 * syllables / words - 15.59

(Kincaid et al. 1975). Counts and rounding are those of textstat 0.7, which ALaRM's code used and
with which its mean and deviation were measured: see `flesch_kincaid_grade`. Requires
`alarm-models[text]`.
"""

from __future__ import annotations

import math
import re
from functools import cache

from pyphen import Pyphen

__all__ = ["flesch_kincaid_grade"]

_PUNCTUATION = re.compile(r"[^\w\s]")
_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")

#: The hyphenation by which textstat counts syllables with "en", as in ALaRM's code.
_HYPHENATION = "en_GB"

#: Shorter sentences do not count: they are abbreviations, or numbers split at the point.
_MAX_UNCOUNTED_WORDS = 2

#: pyphen caches every word that it has seen and never evicts one.
_MAX_CACHED_WORDS = 50_000
_MAX_CACHED_WORD = 100


def flesch_kincaid_grade(text: str) -> float:
    """Return the grade of an English text.

    A word has one syllable more than it has places to hyphenate it. A text has at least one
    sentence. Words per sentence, syllables per word and the grade are rounded to one decimal as in
    textstat: halves and all negative numbers away from zero. A text without words has grade -15.7.
    """
    words = _words(text)
    hyphens = _hyphenation()
    num_syllables = sum(len(hyphens.positions(word.lower())) + 1 for word in words)
    cache = hyphens.hd.cache
    if len(cache) > _MAX_CACHED_WORDS or any(len(word) > _MAX_CACHED_WORD for word in words):
        cache.clear()
    words_per_sentence = _rounded(len(words) / _num_sentences(text))
    syllables_per_word = _rounded(num_syllables / len(words)) if words else 0.0
    return _rounded(0.39 * words_per_sentence + 11.8 * syllables_per_word - 15.59)


def _words(text: str) -> list[str]:
    return _PUNCTUATION.sub("", text).split()


def _num_sentences(text: str) -> int:
    found = _SENTENCE.findall(text)
    return max(1, sum(len(_words(one)) > _MAX_UNCOUNTED_WORDS for one in found))


def _rounded(number: float) -> float:
    return math.floor(number * 10 + math.copysign(0.5, number)) / 10


@cache
def _hyphenation() -> Pyphen:
    return Pyphen(lang=_HYPHENATION)
