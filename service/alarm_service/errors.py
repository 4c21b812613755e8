"""ServiceError, with one subclass per status, and messages for validation errors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from alarm_models.errors import quoted

__all__ = [
    "MAX_FAULTS",
    "BadRequest",
    "BodyTimeout",
    "Broken",
    "ChangeRefused",
    "ClientDisconnected",
    "CorruptedBody",
    "DeadlinePassed",
    "Draining",
    "Forbidden",
    "HeadersTooLarge",
    "Invalid",
    "Misdirected",
    "NotFound",
    "OmittedFaults",
    "Overloaded",
    "RateLimited",
    "SampleFailed",
    "ServiceError",
    "Sleeping",
    "TooLarge",
    "URLTooLong",
    "Unauthorized",
    "format_validation_errors",
    "num_faults",
    "shortened",
]


class ServiceError(Exception):
    """An error response: ``{"error": {"code", "message", "retryable"}}`` and its HTTP status."""

    status = 500
    code = "internal"
    retryable = False

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """The body is not JSON."""

    status, code = 400, "bad_request"


class CorruptedBody(ServiceError):
    """The body was corrupted in transit: it does not match its digest."""

    status, code, retryable = 400, "garbled", True


class Unauthorized(ServiceError):
    """The key is missing or wrong."""

    status, code = 401, "unauthorized"


class Forbidden(ServiceError):
    """The server's operator has not enabled these routes."""

    status, code = 403, "forbidden"


class NotFound(ServiceError):
    """There is no such model, recipe or path."""

    status, code = 404, "not_found"


class BodyTimeout(ServiceError):
    """The body did not arrive in time."""

    status, code, retryable = 408, "too_slow", True


class ChangeRefused(ServiceError):
    """The recipe change is not possible; nothing was changed."""

    status, code = 409, "refused"


class TooLarge(ServiceError):
    """The body or the number of samples is over the limit."""

    status, code = 413, "too_large"


class URLTooLong(ServiceError):
    """The request's URL is over the limit."""

    status, code = 414, "url_too_long"


class Misdirected(ServiceError):
    """The `Host` header names a host that this server does not serve."""

    status, code = 421, "misdirected"


class Invalid(ServiceError):
    """The request does not fit the schema; the message names the field."""

    status, code = 422, "invalid"


class SampleFailed(ServiceError):
    """A sample failed, and the caller's protocol has no per-sample errors."""

    status = 422

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Overloaded(ServiceError):
    """The queue, or the memory for requests that wait, is full."""

    status, code, retryable = 429, "overloaded", True


class RateLimited(ServiceError):
    """This caller's key is over its limit per minute."""

    status, code, retryable = 429, "rate_limited", True


class HeadersTooLarge(ServiceError):
    """The headers are over the limit in bytes or in number."""

    status, code = 431, "headers_too_large"


class Draining(ServiceError):
    """The server is shutting down."""

    status, code, retryable = 503, "draining", True


class Broken(ServiceError):
    """The models could not be loaded, or the device is lost."""

    status, code, retryable = 503, "broken", True


class Sleeping(ServiceError):
    """The models were released with `/admin/sleep`."""

    status, code, retryable = 503, "sleeping", True


class DeadlinePassed(ServiceError):
    """The caller's deadline, or that of `--timeout-s`, has passed."""

    status, code, retryable = 504, "deadline_passed", True


#: Number of validation errors that a message names; the others are only counted.
MAX_FAULTS = 5

#: Maximum number of characters quoted of a name or a number that a caller sent.
_MAX_QUOTED = 200

#: Messages of validators may quote their input.
_MAX_MESSAGE = 500

#: Location parts that pydantic adds for union members and validators, not JSON field names.
_NOT_JSON_FIELDS = ("function-", "list[", "[key]")

#: Members of unions that pydantic names by their type alone, and the errors of other values.
_PLAIN_TYPES = {"int": "int_type", "str": "string_type", "none": "none_required"}


class ClientDisconnected(Exception):
    """The client closed its connection before the response."""


class OmittedFaults:
    """The input of a validation error that stands for ``count`` errors without naming them."""

    def __init__(self, count: int) -> None:
        self.count = count


def num_faults(faults: Sequence[Mapping[str, Any]]) -> int:
    """Count faults, including omitted ones."""
    inputs = (fault.get("input") for fault in faults)
    return sum(one.count if isinstance(one, OmittedFaults) else 1 for one in inputs)


def format_validation_errors(
    faults: Sequence[Mapping[str, Any]],
    within: str | None = None,
    whole: str = "the whole body",
    keys: Collection[str] = (),
) -> str:
    """Format pydantic's errors: each field's path, message and received value.

    Of a field that may be of several types, the errors are those of the type that was received.
    ``within`` is the first part of the fields' paths, which is left out. ``whole`` names what was
    received where it is of a wrong type itself. ``keys`` are those that an unknown one may mean.
    """
    faults = _of_received_types(faults)
    lines = [
        f"{_path(_location(fault), within) or within or whole}: "
        f"{shortened(_message(fault, keys), _MAX_MESSAGE)}{_got(fault)}"
        for fault in faults[:MAX_FAULTS]
    ]
    if len(faults) > MAX_FAULTS:
        lines.append(f"and {num_faults(faults) - MAX_FAULTS} more")
    return "; ".join(lines)


def shortened(text: str, most: int = _MAX_QUOTED) -> str:
    """Return a caller's text, shortened to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _of_received_types(faults: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out what other members of a union say of a value that one of them can read."""
    read_by: dict[tuple[str | int, ...], set[str | int]] = {}
    for fault in faults:
        location = tuple(fault["loc"])
        for at, part in enumerate(location):
            if _is_union_member(part) and not (
                _is_of_other_type(fault) and at + 1 == len(location)
            ):
                read_by.setdefault(location[:at], set()).add(part)
    return [
        fault
        for fault in faults
        if not _is_of_other_type(fault)
        or read_by.get(tuple(fault["loc"][:-1]), set()) <= {fault["loc"][-1]}
    ]


def _is_of_other_type(fault: Mapping[str, Any]) -> bool:
    """Whether a member of a union says that the value is of another type than its own."""
    location = fault["loc"]
    is_type = fault["type"].endswith("_type") or fault["type"] == "none_required"
    return bool(location) and is_type and _is_union_member(location[-1])


def _is_union_member(part: str | int) -> bool:
    return isinstance(part, str) and (part in _PLAIN_TYPES or part.startswith(_NOT_JSON_FIELDS))


def _location(fault: Mapping[str, Any]) -> Sequence[str | int]:
    """Return the location of a fault without the plain type that a union tried last."""
    location: Sequence[str | int] = fault["loc"]
    last = str(location[-1]) if location else ""
    is_type = last in _PLAIN_TYPES and fault["type"].startswith((_PLAIN_TYPES[last], f"{last}_"))
    return location[:-1] if is_type else location


def _path(location: Sequence[str | int], within: str | None) -> str:
    names = [_name(part) for part in location if not str(part).startswith(_NOT_JSON_FIELDS)]
    if within is not None:
        names = names[1:]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names)
    return path.lstrip(".")


def _message(fault: Mapping[str, Any], keys: Collection[str]) -> str:
    message = str(fault["msg"])
    if fault["type"] == "extra_forbidden":
        key = shortened(str(fault["loc"][-1]))
        similar = [] if key in keys else get_close_matches(key, keys, 1)
        return message + "".join(f": did you mean `{one}`?" for one in similar)
    if fault["type"] == "model_type":  # it names our class
        return message.partition(" or instance of")[0]
    return message.removeprefix("Value error, ")


def _name(part: str | int) -> str | int:
    return shortened(part) if isinstance(part, str) else part


def _got(fault: Mapping[str, Any]) -> str:
    if fault["type"] in ("missing", "extra_forbidden"):
        return ""
    value = fault.get("input")
    if isinstance(value, bytes):
        return " (got a body without `Content-Type: application/json`)"
    if isinstance(value, str | list | tuple | dict):
        return f" (got a {type(value).__name__} of length {len(value)})"
    return f" (got {quoted(value)})"
