"""Kind `readability`: the Flesch-Kincaid grade of an English completion."""

from __future__ import annotations

from collections.abc import Mapping

from alarm_models.preprocessing.reading_grade import flesch_kincaid_grade
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import ReadabilitySpec
from alarm_models.reward_models.registry import check_kind
from alarm_models.reward_models.thread_pool import Check
from alarm_models.types import Sample, Score

__all__ = ["Readability", "flesch_kincaid_grade"]


class Readability:
    """Grades completions; a higher grade is harder to read."""

    def __call__(self, sample: Sample) -> Score:
        """Return the grade, which has one decimal."""
        return Score(flesch_kincaid_grade(sample.completion_text), None, 0, False)


@check_kind(ReadabilitySpec, library="pyphen")
def _readability(_spec: ReadabilitySpec, _fields: Mapping[str, FieldPattern]) -> Check:
    return Readability()
