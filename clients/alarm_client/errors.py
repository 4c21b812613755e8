"""The exceptions that a call can raise."""

from __future__ import annotations


class AlarmError(Exception):
    """The base class of this client's exceptions.

    AlarmError
    ├── AlarmConnectionError   nothing answered at the URL, or the connection broke
    ├── DeadlineExceeded       the deadline of the call passed
    ├── ProtocolError          the response does not follow the HTTP contract
    ├── SampleFailed           `scalars()` found a sample without a number
    └── StatusError            the server refused, with an HTTP status
        ├── InvalidRequest     400, 422 and other 4xx: the request must change
        ├── Unauthorized       401, 403: the API key is missing or wrong
        ├── NotFound           404: no such model or recipe, or no such server
        ├── TooLarge           413: the request exceeds the server's limits
        ├── Overloaded         429: the queue is full
        ├── Unavailable        408, 502, 503, 504: loading, draining or too late
        └── ServerFailed       500 and the rest

    `status` and `code` are the server's (None where it did not answer); `retryable` says whether
    the same call may succeed later. Calls retry by themselves until their deadline. `request_id` is
    the `X-Request-Id` of the request that failed, which the server writes in its log.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        retryable: bool = False,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retryable = retryable
        self.request_id = request_id


class AlarmConnectionError(AlarmError):
    """Nothing answered at the URL, or the connection broke.

    Not `retryable` if the configuration must change first: an invalid proxy, or an untrusted server
    certificate.
    """


class DeadlineExceeded(AlarmError):
    """The deadline of the call passed."""


class ProtocolError(AlarmError):
    """The response does not follow the HTTP contract."""


class SampleFailed(AlarmError):
    """A sample has no number, and the caller asked for one per sample."""


class StatusError(AlarmError):
    """The server refused, with an HTTP status."""


class InvalidRequest(StatusError):
    """The request is invalid and must be changed."""


class Unauthorized(StatusError):
    """The API key is missing or wrong."""


class NotFound(StatusError):
    """There is no such model or recipe, or the URL belongs to another server."""


class TooLarge(StatusError):
    """The request is larger than the server's limits."""


class Overloaded(StatusError):
    """The server's queue is full."""


class Unavailable(StatusError):
    """The server is loading or draining, or did not finish before the deadline."""


class ServerFailed(StatusError):
    """The server failed with an internal error."""


_BY_STATUS: dict[int, type[StatusError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    408: Unavailable,
    413: TooLarge,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def status_error(status: int) -> type[StatusError]:
    """The exception class for an HTTP status."""
    fallback = InvalidRequest if 400 <= status < 500 else ServerFailed
    return _BY_STATUS.get(status, fallback)
