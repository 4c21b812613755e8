"""What each API is sent for samples, and how its answer is read: no I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from alarm_models.errors import SampleError
from alarm_models.remote.alarm import AlarmApi
from alarm_models.remote.classifiers import SglangApi, TeiApi, VllmApi
from alarm_models.remote.judge import JudgeApi
from alarm_models.sample import Sample, Score
from alarm_models.specs import RemoteSpec
from alarm_models.texts.template import FieldPattern

__all__ = ["Api", "api_of"]


class Api(Protocol):
    """One API's requests and answers."""

    path: str
    #: Where the server says what it serves.
    identity_path: str
    #: The most samples that a request may have.
    max_samples: int

    def body(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return the request for samples; raise `SampleError` for one that cannot be sent."""

    def with_activation(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the request that asks for activated scores; None where there is no such choice."""

    def read(self, answer: Any, num_samples: int) -> list[Score | SampleError]:
        """Read one outcome a sample, in order.

        Raises `LookupError`, `TypeError` or `ValueError` for an answer of another shape.
        """

    def identity(self, answer: Any) -> str:
        """Read what decides the scores off what the server says of itself; raises as `read`."""


def api_of(spec: RemoteSpec, fields: Mapping[str, FieldPattern]) -> Api:
    """Return the API that a recipe names."""
    match spec.api:
        case "vllm":
            return VllmApi(spec, fields)
        case "sglang":
            return SglangApi(spec, fields)
        case "tei":
            return TeiApi(spec, fields)
        case "alarm":
            return AlarmApi(spec)
        case "chat":
            return JudgeApi(spec, fields)
