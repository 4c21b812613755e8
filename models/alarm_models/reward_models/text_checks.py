"""Kinds without weights: length, repetition, regex, exact match."""

from __future__ import annotations

from collections.abc import Mapping

from alarm_models.errors import RecipeError
from alarm_models.preprocessing.patterns import TimedPattern
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.recipe.specs import ExactMatchSpec, LengthSpec, RegexSpec, RepetitionSpec
from alarm_models.reward_models.registry import check_kind
from alarm_models.reward_models.thread_pool import Check
from alarm_models.types import Sample, Score

__all__ = ["ExactMatch", "FormatMatch", "Repetition", "length", "num_policy_tokens", "repetition"]


def length(sample: Sample) -> Score:
    """Count the policy's tokens, or whitespace-separated words without token offsets."""
    return Score(float(num_policy_tokens(sample)), None, 0, False)


def num_policy_tokens(sample: Sample) -> int:
    """Return the number of token offsets, else of whitespace-separated words."""
    if sample.token_offsets is not None:
        return len(sample.token_offsets)
    return len(sample.completion_text.split())


@check_kind(LengthSpec)
def _length(_spec: LengthSpec, _fields: Mapping[str, FieldPattern]) -> Check:
    return length


class Repetition:
    """The share of n-grams that repeat an earlier one (Yeo et al. 2025, arXiv 2502.03373)."""

    def __init__(self, spec: RepetitionSpec) -> None:
        self._size = spec.ngram

    def __call__(self, sample: Sample) -> Score:
        """Return a share in [0, 1): 0 without repetition."""
        return Score(repetition(sample.completion_text, self._size), None, 0, False)


@check_kind(RepetitionSpec)
def _repetition(spec: RepetitionSpec, _fields: Mapping[str, FieldPattern]) -> Check:
    return Repetition(spec)


def repetition(text: str, size: int) -> float:
    """Return ``1 - distinct n-grams / n-grams`` of a text's words, ignoring case.

    0 for a text with fewer words than an n-gram.
    """
    words = text.lower().split()
    ngrams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class FormatMatch:
    """1 if the pattern matches (the whole completion, or somewhere in it), else 0."""

    def __init__(self, spec: RegexSpec) -> None:
        pattern = TimedPattern(spec.pattern, spec.timeout_s)
        self._match = pattern.fullmatch if spec.match == "whole" else pattern.search

    def __call__(self, sample: Sample) -> Score:
        """Match; raise `SampleError` past the time limit."""
        return Score(float(self._match(sample.completion_text) is not None), None, 0, False)


@check_kind(RegexSpec, library="regex")
def _regex(spec: RegexSpec, _fields: Mapping[str, FieldPattern]) -> Check:
    return FormatMatch(spec)


@check_kind(ExactMatchSpec, library="regex")
class ExactMatch:
    """1 if the answer in a completion equals the reference, else 0; surrounding spaces are ignored.

    The answer is the first group of the pattern's last match, or the whole completion.
    """

    def __init__(self, spec: ExactMatchSpec, fields: Mapping[str, FieldPattern]) -> None:
        self._reference = TextTemplate(spec.reference, fields=fields)
        self._pattern = None if spec.answer is None else TimedPattern(spec.answer, spec.timeout_s)
        if self._pattern is not None and self._pattern.num_groups < 1:
            raise RecipeError(f"answer {spec.answer!r} has no group: put the answer in parentheses")
        self._ignores_case = spec.ignore_case

    def __call__(self, sample: Sample) -> Score:
        """Compare; raise `SampleError` without a reference or past the time limit."""
        reference = self._plain(self._reference.render(sample).text)
        answer = self._answer(sample.completion_text)
        is_same = answer is not None and self._plain(answer) == reference
        return Score(float(is_same), None, 0, False)

    def _answer(self, text: str) -> str | None:
        if self._pattern is None:
            return text
        answer = None
        for found in self._pattern.finditer(text):
            answer = found.group(1)
        return answer

    def _plain(self, text: str) -> str:
        text = text.strip()
        return text.casefold() if self._ignores_case else text
