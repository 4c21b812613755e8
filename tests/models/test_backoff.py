"""Waits before a retry, without randomness."""

import pytest

from alarm_models.backoff import backoff_s


def test_backoff_doubles_up_to_its_limit() -> None:
    assert [backoff_s(attempt, {}, 0.0) for attempt in (0, 1, 2, 20)] == [0.25, 0.5, 1.0, 30.0]
    limits = {"first_s": 0.5, "max_s": 15.0}
    assert [backoff_s(one, None, 0.0, **limits) for one in (0, 4, 5, 9999)] == [0.5, 8, 15, 15]


def test_jitter_takes_up_to_half_of_a_wait() -> None:
    assert backoff_s(1, {}, 0.5) == 0.375
    assert all(0.25 < backoff_s(1) <= 0.5 for _ in range(100))


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [("7", 7), ("0", 0.25), ("9999", 30), ("9" * 400, 30), ("tomorrow", 0.25), ("²", 0.25),
     ("3.5", 3.5), ("-3", 0.25), ("Tue, 01 Dec 2026 06:00:09 GMT", 9), ("Mon, 31 Nov 2026", 0.25)],
)  # fmt: skip
def test_retry_after_is_the_least(
    retry_after: str, wait_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1796104800.0)  # Tue, 01 Dec 2026 06:00:00 GMT
    assert backoff_s(0, {"Retry-After": retry_after}, 0.0) == wait_s
