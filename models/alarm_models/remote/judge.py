"""A chat model as a judge: asked by a rubric, it answers with a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.remote.numbers import plain_score
from alarm_models.remote.ratings import RatingError, Scale, read_rating
from alarm_models.sample import Sample, Score
from alarm_models.specs import RemoteSpec
from alarm_models.specs.remote import ANY_NUMBER
from alarm_models.texts.patterns import TimedPattern
from alarm_models.texts.template import FieldPattern, TextTemplate

__all__ = ["JudgeApi"]

#: How long a recipe's pattern may go through one answer.
_PATTERN_TIMEOUT_S = 1.0


class JudgeApi:
    """An OpenAI-compatible ``/v1/chat/completions``.

    The score is the rating that the answer gives, or the last number that the recipe's own pattern
    finds. An answer without one, with several, out of bounds or cut off is an error of its sample:
    no number is ever made up.
    """

    path = "/v1/chat/completions"
    identity_path = "/v1/models"
    max_samples = 1

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        self._spec = spec
        self._rubric = TextTemplate(spec.rubric or "", fields=fields)
        self._scale = Scale(spec.lowest, spec.highest)
        self._pattern = TimedPattern(spec.pattern, _PATTERN_TIMEOUT_S)

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the rubric with the sample's texts in their places, as one user's message."""
        text = self._rubric.render(samples[0]).text
        messages = [{"role": "user", "content": text}]
        return dict(self._spec.parameters) | {"model": self._spec.model, "messages": messages}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """A judge's number has no activation."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read the number off the judge's words."""
        (choice,) = answer["choices"]
        text = choice["message"]["content"] or ""
        if choice.get("finish_reason") == "length":
            return [_no_number(f"was cut off; raise parameters.max_tokens: {text[-200:]!r}")]
        try:
            value = self._number(text)
        except SampleError as error:
            return [error.with_traceback(None)]
        if not self._scale.holds(value):
            low, high = self._scale.lowest, self._scale.highest
            return [_no_number(f"has {value:g}, which is not within [{low}, {high}]")]
        return [plain_score(value)]

    def identity(self, answer: Any) -> str:
        """Return the model's name and root, where the server lists it."""
        rows = [row for row in answer["data"] if row["id"] == self._spec.model]
        served = str([[row["id"], row.get("root")] for row in rows])
        return served if self._is_own_pattern else f"{served}, ratings as people write them"

    @property
    def _is_own_pattern(self) -> bool:
        return self._spec.pattern != ANY_NUMBER

    def _number(self, text: str) -> float:
        if not self._is_own_pattern:
            try:
                return read_rating(text, self._scale)
            except RatingError as error:
                raise _no_number(f"{error}: {text[-200:]!r}") from error
        last = None
        for match in self._pattern.finditer(text):
            last = match.group(match.lastindex or 0)
        if last is None:
            raise _no_number(f"has no number: {text[:200]!r}")
        try:
            return float(last)
        except ValueError as error:
            raise _no_number(f"has {last[:200]!r}, which is no number") from error


def _no_number(what: str) -> SampleError:
    return SampleError("model_failed", f"the judge's answer {what}")
