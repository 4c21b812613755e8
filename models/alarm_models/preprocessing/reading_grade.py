"""The Flesch-Kincaid grade of an English text.

    grade = 0.39 * words / sentences + 11.8 * syllables / words - 15.59

(Kincaid et al. 1975), with the counts and the roundings of textstat 0.7, which ALaRM's code used
and its mean and deviation were measured with: see `flesch_kincaid_grade`. Needs
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

#: What textstat, set to "en" as ALaRM's code sets it, counts syllables by.
_HYPHENATION = "en_GB"

#: A sentence of no more words than these is none: it is an abbreviation, or a number's first half.
_MAX_WORDS_OF_NONE = 2

#: pyphen keeps every word that it has seen, for as long as the process lives.
_MAX_CACHED_WORDS = 50_000
_MAX_CACHED_WORD = 100


def flesch_kincaid_grade(text: str) -> float:
    """Return the grade of an English text.

    A word has as many syllables as places to hyphenate it, and one; a text has one sentence at
    least. Words a sentence, syllables a word and the grade are rounded to one decimal, as textstat
    rounds: halves and all negative numbers away from zero. A text without words has -15.7.
    """
    words = _words(text)
    hyphens = _hyphenation()
    num_syllables = sum(len(hyphens.positions(word.lower())) + 1 for word in words)
    cache = hyphens.hd.cache
    if len(cache) > _MAX_CACHED_WORDS or any(len(word) > _MAX_CACHED_WORD for word in words):
        cache.clear()
    words_a_sentence = _rounded(len(words) / _num_sentences(text))
    syllables_a_word = _rounded(num_syllables / len(words)) if words else 0.0
    return _rounded(0.39 * words_a_sentence + 11.8 * syllables_a_word - 15.59)


def _words(text: str) -> list[str]:
    return _PUNCTUATION.sub("", text).split()


def _num_sentences(text: str) -> int:
    found = _SENTENCE.findall(text)
    return max(1, sum(len(_words(one)) > _MAX_WORDS_OF_NONE for one in found))


def _rounded(number: float) -> float:
    return math.floor(number * 10 + math.copysign(0.5, number)) / 10


@cache
def _hyphenation() -> Pyphen:
    return Pyphen(lang=_HYPHENATION)
