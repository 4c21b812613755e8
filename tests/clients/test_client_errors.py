"""The error tree."""

import pickle

import pytest

from alarm_client.errors import (
    AlarmError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerFailed,
    StatusError,
    TooLarge,
    Unauthorized,
    Unavailable,
    status_error,
)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, Unauthorized),
        (403, Unauthorized),
        (404, NotFound),
        (413, TooLarge),
        (418, InvalidRequest),
        (422, InvalidRequest),
        (429, Overloaded),
        (500, ServerFailed),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_status_error_maps_each_status(status, kind):
    assert status_error(status) is kind
    assert issubclass(kind, StatusError)
    assert issubclass(kind, AlarmError)


def test_error_survives_pickling():
    error = Overloaded("full", status=429, code="queue_full", retryable=True)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is Overloaded
    assert (str(copy), copy.status, copy.code, copy.retryable) == ("full", 429, "queue_full", True)
