"""A cancelled request frees the thread that works for it."""

import asyncio
import threading

import pytest
from served import serving

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import SampleError
from alarm_models.types import Sample, Span
from alarm_service.engine.pipeline import validate_samples


async def test_cancelled_requests_free_the_tokenization_threads() -> None:
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def endless() -> None:
        begun.release()
        try:
            while True:
                check_cancelled()
        finally:
            ended.release()

    async with serving() as server:
        pipeline = server.engine.pipeline
        calls = [asyncio.create_task(pipeline.run_in_thread(endless)) for _ in range(2)]
        for _ in calls:
            await asyncio.to_thread(begun.acquire)
        for call in calls:
            call.cancel()
        for _ in calls:
            assert await asyncio.to_thread(ended.acquire, timeout=60)
        assert await pipeline.run_in_thread(lambda: "free") == "free"


def test_check_cancelled_outside_a_cancellable_call_does_nothing() -> None:
    check_cancelled()


def test_spans_that_repeat_a_completion_many_times_fail_the_sample() -> None:
    whole = (Span(0, 4),)
    fine = Sample("p", "A. B", segments={"sentences": whole * 8})
    repeated = Sample("p", "A. B", segments={"sentences": whole * 9})
    faults = validate_samples([fine, repeated])
    assert faults[0] is None
    assert isinstance(faults[1], SampleError)
    assert faults[1].code == "invalid_sample"
    assert "segments.sentences overlap: together they are 36 characters" in faults[1].message


@pytest.mark.parametrize("name", ["sentences", "steps"])
def test_span_overlap_is_counted_per_kind(name: str) -> None:
    sample = Sample("p", "A. B", segments={name: (Span(0, 2), Span(2, 4)) * 1})
    assert validate_samples([sample]) == [None]
