"""What the server answers instead of a result: one type a status, each a sentence to act on."""

from __future__ import annotations

__all__ = [
    "BadRequest",
    "Broken",
    "DeadlinePassed",
    "Draining",
    "Forbidden",
    "Garbled",
    "HeadersTooLarge",
    "Invalid",
    "Misdirected",
    "NotFound",
    "Overloaded",
    "RateLimited",
    "Refused",
    "SampleFailed",
    "ServiceError",
    "TooLarge",
    "TooSlow",
    "URLTooLong",
    "Unauthorized",
]


class ServiceError(Exception):
    """An answer of ``{"error": {"code", "message", "retryable"}}`` with its HTTP status."""

    status = 500
    code = "internal"
    retryable = False

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """The body is no JSON."""

    status, code = 400, "bad_request"


class Garbled(ServiceError):
    """The body is not the one that was sent."""

    status, code, retryable = 400, "garbled", True


class Unauthorized(ServiceError):
    """No key, or a wrong one."""

    status, code = 401, "unauthorized"


class Forbidden(ServiceError):
    """The server's operator has not opened these routes."""

    status, code = 403, "forbidden"


class NotFound(ServiceError):
    """No such model, recipe or path."""

    status, code = 404, "not_found"


class TooSlow(ServiceError):
    """The body did not arrive in time."""

    status, code, retryable = 408, "too_slow", True


class Refused(ServiceError):
    """What is served cannot be changed like this, and stays as it was."""

    status, code = 409, "refused"


class TooLarge(ServiceError):
    """The body or the number of samples is over the limit."""

    status, code = 413, "too_large"


class URLTooLong(ServiceError):
    """The request's URL is over the limit."""

    status, code = 414, "url_too_long"


class Misdirected(ServiceError):
    """The `Host` header names a host that this server does not answer for."""

    status, code = 421, "misdirected"


class Invalid(ServiceError):
    """The request does not fit the schema; the message names the field and what it got."""

    status, code = 422, "invalid"


class SampleFailed(ServiceError):
    """A sample has no reward, and the caller's protocol no place for its error but this one."""

    status = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Overloaded(ServiceError):
    """The queue is full."""

    status, code, retryable = 429, "overloaded", True


class RateLimited(ServiceError):
    """This caller's key has sent more than it may in a minute."""

    status, code, retryable = 429, "rate_limited", True


class HeadersTooLarge(ServiceError):
    """The headers are over the limit in bytes or in number."""

    status, code = 431, "headers_too_large"


class Draining(ServiceError):
    """The server is about to stop."""

    status, code, retryable = 503, "draining", True


class Broken(ServiceError):
    """The models could not be loaded, or the device is lost."""

    status, code, retryable = 503, "broken", True


class DeadlinePassed(ServiceError):
    """The deadline that the caller set has passed."""

    status, code, retryable = 504, "deadline_passed", True
