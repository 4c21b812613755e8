"""Kind `repetition`: how much of a completion says again what it said before."""

from __future__ import annotations

from alarm_models.sample import Sample, Score
from alarm_models.specs import RepetitionSpec

__all__ = ["Repetition", "repetition"]


class Repetition:
    """The share of n-grams that stood in the completion before (Yeo et al. 2025, 2502.03373)."""

    def __init__(self, spec: RepetitionSpec) -> None:
        self._size = spec.ngram

    def __call__(self, sample: Sample) -> Score:
        """Return a share in [0, 1): 0 where nothing is said twice."""
        return Score(repetition(sample.completion_text, self._size), None, 0, False)


def repetition(text: str, size: int) -> float:
    """Return ``1 - distinct n-grams / n-grams`` of a text's words, case apart.

    A text of fewer words than an n-gram has 0.
    """
    words = text.lower().split()
    ngrams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
