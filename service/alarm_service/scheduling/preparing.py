"""The step before a model: samples that fit are handed on, and the others fail alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import SampleError
from alarm_models.features import Features
from alarm_models.rewards import Prepared, RewardModel
from alarm_models.sample import Sample, Span, require_spans_within, require_starts_within
from alarm_service.scheduling.job import Job
from alarm_service.scheduling.work import Work

__all__ = ["faults_of", "owned_by", "prepare", "settle"]

#: How many spans a character may be in, on average.
_MAX_OVERLAP = 8


def prepare(model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
    """Prepare samples for a model; one whose spans leave the completion is not shown to it."""
    faults = faults_of(samples)
    fitting = [sample for sample, fault in zip(samples, faults, strict=True) if fault is None]
    prepared = iter(_prepare(model, fitting) if fitting else ())
    return [next(prepared) if fault is None else fault for fault in faults]


def faults_of(samples: Sequence[Sample]) -> list[SampleError | None]:
    """Return what is wrong with each sample, whatever model it is for."""
    return [_fault(sample) for sample in samples]


def _fault(sample: Sample) -> SampleError | None:
    check_cancelled()
    text = sample.completion_text
    try:
        require_spans_within(sample.token_offsets or (), text, "token_offsets")
        for name, spans in sample.segments.items():
            require = require_starts_within if name == "errors" else require_spans_within
            require(spans, text, f"segments.{name}")
            if name != "errors":
                _require_little_overlap(spans, text, f"segments.{name}")
    except SampleError as fault:
        # Without its traceback, which would hold the sample for as long as the error lives.
        return fault.with_traceback(None)
    return None


def _require_little_overlap(spans: Sequence[Span], text: str, name: str) -> None:
    """Raise `SampleError` for spans that repeat the text many times: each of them is read."""
    num_covered = sum(end - start for start, end in spans)
    if num_covered > _MAX_OVERLAP * len(text):
        raise SampleError(
            "invalid_sample",
            f"{name} overlap: together they are {num_covered} characters long, and the completion "
            f"has {len(text)}; send each part of it in one span",
        )


def _prepare(model: RewardModel, samples: Sequence[Sample]) -> list[Prepared]:
    """Prepare samples; where one makes the whole call raise, only that one fails."""
    try:
        return model.prepare(samples)
    except Exception as error:  # a tokenizer may raise anything; its neighbours go on
        if len(samples) == 1:
            message = f"the sample cannot be prepared: {error!r}"[:500]
            return [SampleError("model_failed", message)]
    return [prepared for sample in samples for prepared in _prepare(model, [sample])]


def owned_by(prepared: Sequence[Prepared], key: str) -> Sequence[Prepared]:
    """Return features that share nothing with those of other keys; an empty key is no key."""
    if not key:
        return prepared
    return [replace(one, owner=key) if isinstance(one, Features) else one for one in prepared]


def settle(
    prepared: Sequence[Prepared], start: int, work: Callable[..., Work], job: Job
) -> list[Work]:
    """Deliver what needs no device, and return the work that does."""
    now = time.monotonic()
    works = []
    for index, one in enumerate(prepared, start):
        receiver = job.receiver(index)
        if isinstance(one, Features):
            works.append(work(features=one, deliver=receiver, since=now))
        else:
            receiver(one)
    return works
