"""Backoff arithmetic."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alarm_client._retry import Retries, backoff_delay, parse_retry_after

RETRIES = Retries(first=1.0, longest=8.0)


@pytest.mark.parametrize(
    ("attempt", "jitter", "delay"),
    [(0, 0.0, 0.5), (0, 1.0, 1.0), (1, 0.0, 1.0), (2, 0.5, 3.0), (3, 1.0, 8.0), (9, 1.0, 8.0)],
)
def test_backoff_doubles_to_the_longest_and_jitter_halves(attempt, jitter, delay):
    assert backoff_delay(RETRIES, attempt, time_left=100, jitter=jitter) == delay


@pytest.mark.parametrize(
    ("retry_after", "jitter", "delay"), [(2.0, 0.0, 2.0), (2.0, 1.0, 3.0), (0.0, 0.0, 0.5)]
)
def test_backoff_never_shortens_retry_after(retry_after, jitter, delay):
    assert backoff_delay(RETRIES, 0, time_left=100, jitter=jitter, retry_after=retry_after) == delay


def test_backoff_jitter_keeps_retry_after_within_deadline():
    assert backoff_delay(RETRIES, 0, time_left=10, jitter=1.0, retry_after=8.0) == 9.0


@pytest.mark.parametrize("retry_after", [None, 1.0, 60.0])
def test_backoff_longer_than_time_left_is_none(retry_after):
    assert backoff_delay(RETRIES, 0, time_left=0.4, jitter=0.0, retry_after=retry_after) is None


def test_backoff_of_thousandth_attempt_does_not_overflow():
    assert backoff_delay(RETRIES, 10_000, time_left=100, jitter=1.0) == 8.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-4", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_parse_retry_after_accepts_seconds_and_dates(value, seconds):
    assert parse_retry_after(value, lambda: 40.0) == seconds


def test_backoff_is_cut_to_half_of_time_left():
    assert backoff_delay(RETRIES, 9, time_left=6, jitter=1.0) == 3.0
    assert backoff_delay(RETRIES, 9, time_left=0.51, jitter=1.0) == 0.255


def test_backoff_of_connection_errors_has_own_longest():
    retries = Retries(first=1.0, longest=30.0)
    assert backoff_delay(retries, 9, time_left=100, jitter=1.0) == 30.0
    assert backoff_delay(retries.of_connections, 9, time_left=100, jitter=1.0) == 5.0
    assert Retries(longest=2.0).of_connections.longest == 2.0


@pytest.mark.parametrize(
    "options",
    [{"first": -1.0}, {"longest": float("nan")}, {"longest": math.inf}, {"max_reconnects": -1}],
)
def test_retries_with_invalid_number_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        Retries(**options)


@given(st.text())
def test_parse_retry_after_with_random_text_never_raises(value):
    seconds = parse_retry_after(value, lambda: 40.0)
    assert seconds is None or 0 <= seconds < math.inf
