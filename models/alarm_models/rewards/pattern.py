"""Kinds `regex` and `exact-match`: does a completion have a form, does it say the right thing?"""

from __future__ import annotations

from collections.abc import Mapping

import regex

from alarm_models.errors import RecipeError, SampleError
from alarm_models.sample import Sample, Score
from alarm_models.specs import ExactMatchSpec, RegexSpec
from alarm_models.texts.template import FieldPattern, TextTemplate

__all__ = ["ExactMatch", "FormatMatch"]


class FormatMatch:
    """1 where the pattern matches (the whole completion, or somewhere in it), else 0."""

    def __init__(self, spec: RegexSpec) -> None:
        self._pattern = _compiled(spec.pattern)
        self._is_whole = spec.match == "whole"
        self._timeout_s = spec.timeout_s

    def __call__(self, sample: Sample) -> Score:
        """Match; raise `SampleError` where that takes too long."""
        match = self._pattern.fullmatch if self._is_whole else self._pattern.search
        try:
            # Python's own `re` would hold the interpreter for as long as it goes through a text.
            found = match(sample.completion_text, timeout=self._timeout_s, concurrent=True)
        except TimeoutError as error:
            raise _too_slow(self._timeout_s) from error
        return Score(float(found is not None), None, 0, False)


class ExactMatch:
    """1 where the answer in a completion is the reference, else 0; spaces around do not count.

    The answer is the first group of the pattern's last match, or the whole completion.
    """

    def __init__(self, spec: ExactMatchSpec, fields: Mapping[str, FieldPattern]) -> None:
        self._reference = TextTemplate(spec.reference, fields=fields)
        self._pattern = None if spec.answer is None else _compiled(spec.answer)
        if self._pattern is not None and self._pattern.groups < 1:
            raise RecipeError(f"answer {spec.answer!r} has no group: put the answer in brackets")
        self._ignores_case = spec.ignore_case
        self._timeout_s = spec.timeout_s

    def __call__(self, sample: Sample) -> Score:
        """Compare; raise `SampleError` without the reference or where finding takes too long."""
        reference = self._plain(self._reference.render(sample).text)
        answer = self._answer(sample.completion_text)
        is_same = answer is not None and self._plain(answer) == reference
        return Score(float(is_same), None, 0, False)

    def _answer(self, text: str) -> str | None:
        if self._pattern is None:
            return text
        answer = None
        try:
            for found in self._pattern.finditer(text, timeout=self._timeout_s, concurrent=True):
                answer = found.group(1)
        except TimeoutError as error:
            raise _too_slow(self._timeout_s) from error
        return answer

    def _plain(self, text: str) -> str:
        text = text.strip()
        return text.casefold() if self._ignores_case else text


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise RecipeError(f"pattern {pattern!r} cannot be read: {error}") from error


def _too_slow(timeout_s: float) -> SampleError:
    return SampleError("model_failed", f"the pattern took longer than {timeout_s:g} s")
