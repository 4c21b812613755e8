"""Kind `python`: a user's function of a sample, in worker processes.

    def reward(sample: alarm_models.types.Sample) -> float | None | list[tuple]

A number is the score; None is no score; a list of ``(start, end)``, ``(start, end, score)`` or
``(start, end, score, label)`` scores spans of the completion, positive if above 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alarm_models.errors import RecipeError, SampleError
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import PythonSpec
from alarm_models.reward_models.base import (
    HostModel,
    fingerprint_of,
    gather_limited,
    require_finite,
)
from alarm_models.reward_models.process_pool import Function, FunctionPool
from alarm_models.reward_models.registry import host_kind
from alarm_models.types import Sample, Score, SegmentScore, Span, require_spans_within

__all__ = ["PythonModel"]


class PythonModel(HostModel):
    """Calls the function; a call that raises, hangs or dies fails only its sample."""

    def __init__(self, spec: PythonSpec) -> None:
        function = Function.find(spec.path, spec.function, spec.timeout_s, spec.environment)
        super().__init__(fingerprint_of(spec, function.digest), spec.view_rules)
        self._pool = FunctionPool(function, spec.workers, spec.concurrency)
        self._at_once = spec.workers * (spec.concurrency if function.is_async else 1)

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        """Call the function with what it is shown of each sample."""
        return await self._score_shown(samples, self._call)

    async def _call(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        return await gather_limited(self._score, samples, self._at_once)

    async def close(self) -> None:
        """Kill the processes."""
        await self._pool.close()

    async def _score(self, sample: Sample) -> Score | SampleError:
        try:
            return _read(await self._pool.call(sample), sample.completion_text)
        except SampleError as error:
            return error.with_traceback(None)


@host_kind(PythonSpec)
def _load(spec: PythonSpec, _fields: Mapping[str, FieldPattern]) -> PythonModel:
    if not Path(spec.path).is_dir():
        raise RecipeError(f"path {spec.path!r} is not a folder: give the one that has the module")
    return PythonModel(spec)


def _read(value: object, text: str) -> Score:
    if isinstance(value, float):
        require_finite([value])
        return Score(value, None, 0, False)
    if value is None:
        return Score(None, None, 0, False)
    if not isinstance(value, list):
        raise SampleError(
            "model_failed", f"the function returned {value!r}, which is neither a number nor spans"
        )
    segments = tuple(
        SegmentScore(Span(start, end), label, score, score is not None and score > 0)
        for start, end, score, label in sorted(value, key=lambda span: (span[0], span[1]))
    )
    _require_valid(segments, text)
    share = sum(bool(one.is_positive) for one in segments) / len(segments) if segments else None
    return Score(share, segments, 0, False)


def _require_valid(segments: Sequence[SegmentScore], text: str) -> None:
    require_finite([one.score for one in segments if one.score is not None])
    try:
        require_spans_within([one.span for one in segments], text, "the function's spans")
    except SampleError as error:
        raise SampleError("model_failed", error.message) from None
