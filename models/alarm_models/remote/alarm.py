"""Another alarm server: samples as they came, scores with their segments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.remote.client import excerpt
from alarm_models.remote.numbers import number
from alarm_models.sample import Message, Sample, Score, SegmentScore, Span
from alarm_models.specs import RemoteSpec

__all__ = ["AlarmApi"]

#: Of the codes of a sample's error, those that mean here what they mean there.
_CODES = frozenset({"too_long", "non_finite", "invalid_sample", "model_failed"})

_NOT_FINITE = SampleError("non_finite", "the remote model gave a number that is not finite")


class AlarmApi:
    """The ``/score`` of another alarm server; a fingerprint that changes is an error."""

    path = "/score"
    identity_path = "/models"

    def __init__(self, spec: RemoteSpec) -> None:
        self.max_samples = spec.batch_size
        self._spec = spec
        self._fingerprint: str | None = None
        self._is_graded = False

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return a request of samples as they came."""
        named = {} if self._spec.model is None else {"model": self._spec.model}
        return named | {"samples": [_sample(sample) for sample in samples]}

    def with_activation(self, body: Mapping[str, Any]) -> None:
        """An activation is the other server's recipe's to name."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one score or error a sample."""
        there = answer["fingerprint"]
        if there != self._fingerprint:
            return [
                SampleError(
                    "model_failed",
                    f"the remote model's fingerprint is {excerpt(there)} now, it was "
                    f"{self._fingerprint}: start this server again to take the new one",
                )
            ] * num_samples
        return [self._outcome(row) for row in answer["scores"]]

    def identity(self, answer: Any) -> str:
        """Return the model's fingerprint, and note whether it grades segments."""
        name = self._spec.model
        if name is None:
            # The default is the first recipe's holistic model.
            first = answer["recipes"][0]
            name = first["holistic"]
        row = next(row for row in answer["models"] if row["name"] == name)
        if row["fingerprint"] is None:
            raise ValueError(f"the model {name!r} is still loading there")
        self._is_graded = row["kind"] == "steps"
        if not isinstance(row["fingerprint"], str):
            raise TypeError("a fingerprint was expected to be a text")
        self._fingerprint = row["fingerprint"]
        return self._fingerprint

    def _outcome(self, row: Any) -> Score | SampleError:
        if row["error"] is not None:
            code, message = str(row["error"]["code"]), excerpt(row["error"]["message"])
            if code in _CODES:
                return SampleError(code, message)
            return SampleError("model_failed", f"{excerpt(code)}: {message}")
        segments, outputs = row["segments"], row.get("outputs")
        score = Score(
            _number_or_none(row["score"]),
            None if segments is None else tuple(self._segment(one) for one in segments),
            _whole(row["num_tokens"]),
            row["truncated"] is True,
            outputs=None
            if outputs is None
            else {str(name): number(one) for name, one in outputs.items()},
        )
        return score if _is_finite(score) else _NOT_FINITE

    def _segment(self, row: Any) -> SegmentScore:
        score = _number_or_none(row["score"])
        label = None if row["label"] is None else str(row["label"])
        is_positive = None if score is None or self._is_graded else score > 0
        return SegmentScore(
            Span(_whole(row["start"]), _whole(row["end"])), label, score, is_positive
        )


def _number_or_none(value: object) -> float | None:
    return None if value is None else number(value)


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError("a whole number was expected")
    return value


def _is_finite(score: Score) -> bool:
    numbers = [score.value, *(score.outputs or {}).values()]
    numbers += [one.score for one in score.segments or ()]
    return all(one is None or math.isfinite(one) for one in numbers)


def _sample(sample: Sample) -> dict[str, Any]:
    # Spans are tuples, which are lists in JSON.
    return {
        "prompt": _content(sample.prompt),
        "completion": _content(sample.completion),
        "fields": dict(sample.fields),
        "segments": {name: list(spans) for name, spans in sample.segments.items()},
        "group": sample.group,
        "token_offsets": None if sample.token_offsets is None else list(sample.token_offsets),
    }


def _content(content: str | tuple[Message, ...]) -> object:
    if isinstance(content, str):
        return content
    return [{"role": message.role, "content": message.content} for message in content]
