"""A chat model as a judge: asked by a rubric, it answers with a number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.remote.numbers import plain_score
from alarm_models.sample import Sample, Score
from alarm_models.specs import RemoteSpec
from alarm_models.texts.template import FieldPattern, TextTemplate

__all__ = ["JudgeApi"]


class JudgeApi:
    """An OpenAI-compatible ``/v1/chat/completions``.

    The score is the last number of the answer that the recipe's pattern finds. An answer without
    one, out of bounds or cut off is an error of its sample: no number is ever made up.
    """

    path = "/v1/chat/completions"
    identity_path = "/v1/models"
    max_samples = 1

    def __init__(self, spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> None:
        self._spec = spec
        self._rubric = TextTemplate(spec.rubric or "", fields=fields)
        self._pattern = re.compile(spec.pattern)

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
        found = [match.group(match.lastindex or 0) for match in self._pattern.finditer(text)]
        if not found:
            return [_no_number(f"has no number: {text[:200]!r}")]
        try:
            value = float(found[-1])
        except ValueError:
            return [_no_number(f"has {found[-1]!r}, which is no number")]
        low, high = self._spec.lowest, self._spec.highest
        if (low is not None and value < low) or (high is not None and value > high):
            return [_no_number(f"has {value:g}, which is not within [{low}, {high}]")]
        return [plain_score(value)]

    def identity(self, answer: Any) -> str:
        """Return the model's name and root, where the server lists it."""
        rows = [row for row in answer["data"] if row["id"] == self._spec.model]
        return str([[row["id"], row.get("root")] for row in rows])


def _no_number(what: str) -> SampleError:
    return SampleError("model_failed", f"the judge's answer {what}")
