"""What a text shows without a model, to compare aspects with: length and how hard it reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

__all__ = ["BASELINES", "num_words", "reading_grade"]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")


def num_words(text: str) -> float:
    """Count the words between white space."""
    return float(len(text.split()))


def reading_grade(text: str) -> float:
    """Return the Flesch-Kincaid grade: ``.39 words/sentence + 11.8 syllables/word - 15.59``.

    Syllables are groups of vowels, a silent final e left out: right for most English words.
    A text without words has grade 0.
    """
    words = _WORD.findall(text)
    if not words:
        return 0.0
    sentences = max(1, len(_SENTENCE_END.findall(text.strip())))
    syllables = sum(_syllables(word.lower()) for word in words)
    return 0.39 * len(words) / sentences + 11.8 * syllables / len(words) - 15.59


def _syllables(word: str) -> int:
    groups = len(_VOWELS.findall(word))
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ie", "oe", "ue", "ye"))
    return max(1, groups - silent)


#: What every study compares aspects with; the paper's figures show length too.
BASELINES: Mapping[str, Callable[[str], float]] = {
    "length": num_words,
    "readability": reading_grade,
}
