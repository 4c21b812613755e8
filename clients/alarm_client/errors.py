"""Everything that a call can raise."""

from __future__ import annotations


class AlarmError(Exception):
    """The root of what this client raises.

    AlarmError
    ├── AlarmConnectionError   nothing answered at the URL, or the connection broke
    ├── DeadlineExceeded       the time of the call ran out
    ├── ProtocolError          the answer is not what the contract promises
    ├── SampleFailed           `scalars()` met a sample without a number
    └── StatusError            the server refused, with an HTTP status
        ├── InvalidRequest     400, 422 and other 4xx: the request must change
        ├── Unauthorized       401, 403: the API key is missing or wrong
        ├── NotFound           404: no such model or recipe, or no such server
        ├── TooLarge           413: more than the server takes at once
        ├── Overloaded         429: the queue is full
        ├── Unavailable        408, 502, 503, 504: loading, draining or too late
        └── ServerFailed       500 and the rest

    `status` and `code` are the server's (None where it did not answer); `retryable` says whether
    the same call may pass later. Calls retry by themselves until their deadline. `request_id` is
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

    Not `retryable` where no request can be made as things are: the proxy of the environment cannot
    be used, or the server's certificate is not trusted.
    """


class DeadlineExceeded(AlarmError):
    """The time of the call ran out."""


class ProtocolError(AlarmError):
    """The answer is not what the contract promises."""


class SampleFailed(AlarmError):
    """A sample has no number, and the caller asked for one of each."""


class StatusError(AlarmError):
    """The server refused, with an HTTP status."""


class InvalidRequest(StatusError):
    """The request must change before it can pass."""


class Unauthorized(StatusError):
    """The API key is missing or wrong."""


class NotFound(StatusError):
    """The server has no such model or recipe, or it is another server."""


class TooLarge(StatusError):
    """The request holds more than the server takes at once."""


class Overloaded(StatusError):
    """The server's queue is full."""


class Unavailable(StatusError):
    """The server is loading, draining or was too late."""


class ServerFailed(StatusError):
    """The server failed on its own account."""


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
    """The kind of error that an HTTP status stands for."""
    fallback = InvalidRequest if 400 <= status < 500 else ServerFailed
    return _BY_STATUS.get(status, fallback)
