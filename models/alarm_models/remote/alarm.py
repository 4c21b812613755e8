"""Another alarm server: samples as they came, scores with their segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import SampleError
from alarm_models.sample import Message, Sample, Score, SegmentScore, Span
from alarm_models.specs import RemoteSpec

__all__ = ["AlarmApi"]


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
        if answer["fingerprint"] != self._fingerprint:
            return [
                SampleError(
                    "model_failed",
                    f"the remote model's fingerprint is {answer['fingerprint']} now, it was "
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
        self._fingerprint = str(row["fingerprint"])
        return self._fingerprint

    def _outcome(self, row: Any) -> Score | SampleError:
        if row["error"] is not None:
            return SampleError(str(row["error"]["code"]), str(row["error"]["message"]))
        segments = row["segments"]
        return Score(
            row["score"],
            None if segments is None else tuple(self._segment(one) for one in segments),
            int(row["num_tokens"]),
            bool(row["truncated"]),
            outputs=row.get("outputs"),
        )

    def _segment(self, row: Any) -> SegmentScore:
        score = row["score"]
        is_positive = None if score is None or self._is_graded else score > 0
        return SegmentScore(Span(row["start"], row["end"]), row["label"], score, is_positive)


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
