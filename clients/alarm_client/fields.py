"""One checked value out of an answer: what does not fit raises ProtocolError with its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from alarm_client.errors import ProtocolError

Json: TypeAlias = Mapping[str, object]
_LARGEST = 1.7e308


def read_object(body: bytes) -> Json:
    """The JSON object in a body, NaN and infinity refused."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        start = body[:80].decode("utf-8", "replace")
        raise ProtocolError(f"the answer is not JSON ({error}): {start!r}") from error
    return object_of(value, "the answer")


def number(value: object, name: str) -> float:
    """A finite number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not -_LARGEST < value < _LARGEST:  # type: ignore[operator]  # is_number
        raise ProtocolError(f"{name} must be a finite number, got {str(value)[:80]}")
    return float(value)  # type: ignore[arg-type]  # is_number


def optional_number(row: Json, name: str) -> float | None:
    """A finite number, or None where the row has null or nothing."""
    return None if row.get(name) is None else number(row[name], name)


def positive(value: object, fallback: int) -> int:
    """A count of one or more, or the fallback."""
    return value if isinstance(value, int) and value > 0 else fallback


def text(row: Json, name: str) -> str:
    """A text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} must be a text, got {str(value)[:80]!r}")
    return value


def object_of(value: object, name: str) -> Json:
    """An object."""
    if not isinstance(value, dict):
        raise ProtocolError(f"{name} must be an object, got {str(value)[:80]!r}")
    return value


def list_of(value: object, name: str) -> list[object]:
    """A list."""
    if not isinstance(value, list):
        raise ProtocolError(f"{name} must be a list, got {str(value)[:80]!r}")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
