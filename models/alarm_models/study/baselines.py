"""Baselines to compare aspects with, which need no model: length and reading grade."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["BASELINES", "num_words", "reading_grade"]


def num_words(text: str) -> float:
    """Count the whitespace-separated words."""
    return float(len(text.split()))


def reading_grade(text: str) -> float:
    """Return the Flesch-Kincaid grade of an English text, as kind `readability` scores it.

    Needs `alarm-models[text]`.
    """
    from alarm_models.preprocessing.reading_grade import flesch_kincaid_grade

    return flesch_kincaid_grade(text)


#: The baselines of every study; the paper's figures also show length.
BASELINES: Mapping[str, Callable[[str], float]] = {
    "length": num_words,
    "readability": reading_grade,
}
