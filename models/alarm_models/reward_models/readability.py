"""Kind `readability`: the Flesch-Kincaid grade of an English completion."""

from __future__ import annotations

from alarm_models.preprocessing.reading_grade import flesch_kincaid_grade
from alarm_models.types import Sample, Score

__all__ = ["Readability", "flesch_kincaid_grade"]


class Readability:
    """Grades completions; a higher grade is harder to read."""

    def __call__(self, sample: Sample) -> Score:
        """Return the grade, which has one decimal."""
        return Score(flesch_kincaid_grade(sample.completion_text), None, 0, False)
