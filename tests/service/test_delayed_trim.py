"""When the memory of unusually large batches is given back."""

import threading

import pytest

from alarm_service.engine import worker
from alarm_service.engine.worker import DelayedTrim

#: Far longer than a timer takes to start.
PATIENCE_S = 30.0


@pytest.fixture
def trimmed(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Return a semaphore that is released once for each time memory is given back."""
    released = threading.Semaphore(0)
    monkeypatch.setattr(worker, "trim_malloc", released.release)
    return released


def test_memory_of_an_unusually_large_batch_is_given_back(trimmed: threading.Semaphore) -> None:
    trim = DelayedTrim(0.0)
    trim.record(5000)
    assert trimmed.acquire(timeout=PATIENCE_S)
    trim.record(100_000)
    assert trimmed.acquire(timeout=PATIENCE_S)
    assert not trimmed.acquire(blocking=False)


def test_memory_of_large_batches_one_after_another_is_given_back_once(
    trimmed: threading.Semaphore,
) -> None:
    trim = DelayedTrim(0.5)
    for num_tokens in (5000, 20_000, 80_000):
        trim.record(num_tokens)
    assert trimmed.acquire(timeout=PATIENCE_S)
    assert not trimmed.acquire(timeout=1.0)


def test_memory_of_usual_batches_is_kept(trimmed: threading.Semaphore) -> None:
    trim = DelayedTrim(0.0)
    trim.record(2048)  # small
    for _ in range(20):
        trim.record(2000)
    trim.record(3000)
    assert not trimmed.acquire(timeout=0.5)


def test_memory_of_batches_that_have_become_usual_is_kept(trimmed: threading.Semaphore) -> None:
    trim = DelayedTrim(0.5)
    for _ in range(20):
        trim.record(8000)  # only the first five are twice the mean of those before
    assert not trimmed.acquire(timeout=1.5)


def test_closed_gives_nothing_back(trimmed: threading.Semaphore) -> None:
    trim = DelayedTrim(0.5)
    trim.record(5000)
    trim.close()
    trim.record(50_000)  # a pass that was still running
    assert not trimmed.acquire(timeout=1.5)
