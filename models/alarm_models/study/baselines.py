"""What a text shows without a model, to compare aspects with: its length and its reading grade."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["BASELINES", "num_words", "reading_grade"]


def num_words(text: str) -> float:
    """Count the words between white space."""
    return float(len(text.split()))


def reading_grade(text: str) -> float:
    """Return the Flesch-Kincaid grade of an English text, as kind `readability` scores it.

    Needs `alarm-models[text]`.
    """
    from alarm_models.preprocessing.reading_grade import flesch_kincaid_grade

    return flesch_kincaid_grade(text)


#: What every study compares aspects with; the paper's figures show length too.
BASELINES: Mapping[str, Callable[[str], float]] = {
    "length": num_words,
    "readability": reading_grade,
}
