"""Converts callers' values to JSON types; errors name the field that cannot be converted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_DIGITS = 4300  # Python's limit for converting integers to text
_DEEPEST = 100


def describe(value: object) -> str:
    """A value's type, with the value itself if it is a short number."""
    name = type(value).__name__
    return f"{name} {value!r}" if isinstance(value, (bool, float)) else name


def scalar_of(value: Any) -> Any:
    """The value of a numpy scalar or of an array without dimensions; other values unchanged."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def rows_of(value: Any) -> Any:
    """The rows of an array or a tensor as lists; other values unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def integer_of(value: object, where: str) -> int:
    """An integer, or a float with an integer value; TypeError or ValueError otherwise."""
    value = scalar_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, float):
        raise ValueError(f"{where} must be an integer, got {value!r}")
    raise TypeError(f"{where} must be an integer, got {describe(value)}")


def name_of(value: object, where: str) -> str | int | None:
    """A string or an integer used as an identifier, or None."""
    value = scalar_of(value)
    if value is None:
        return None
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{where} must be a string, an integer or None, got {value!r}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _writable(integer_of(value, where), where)
    raise TypeError(
        f"{where} must be a string, an integer or None, got {describe(value)}; "
        "convert it with str()"
    )


def text_of(value: object, where: str) -> str | None:
    """A string or None."""
    value = scalar_of(value)
    if value is None:
        return None
    if isinstance(value, str):
        return _plain_text(value)
    raise TypeError(f"{where} must be a string, got {describe(value)}")


def json_of(value: object, where: str, depth: int = 0) -> Any:
    """A JSON value; mappings become objects, arrays and tuples become lists."""
    value = scalar_of(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value)
    if isinstance(value, int):
        return _writable(int(value), where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, got {value!r}")
        return float(value)
    if depth == _DEEPEST:
        raise ValueError(f"{where} is nested deeper than {_DEEPEST} levels")
    if isinstance(value, Mapping):
        return {
            key_of(key, where): json_of(inner, f"{where}[{key!r}]", depth + 1)
            for key, inner in value.items()
        }
    if is_list(value):
        return [
            json_of(inner, f"{where}[{index}]", depth + 1)
            for index, inner in enumerate(rows_of(value))
        ]
    raise TypeError(f"{where} must be a JSON value, got {describe(value)}")


def key_of(key: object, where: str) -> str:
    """A key of a JSON object."""
    if not isinstance(key, str):
        raise TypeError(f"{where} must have strings as keys, got {describe(key)}")
    return _plain_text(key)


def is_list(value: object) -> bool:
    """Whether a value is a list, a tuple, an array or a tensor."""
    return isinstance(value, (list, tuple)) or (
        hasattr(value, "tolist") and isinstance(rows_of(value), list)
    )


def object_of_message(message: Any, where: str) -> dict[str, Any]:
    """A chat message: a mapping, a dataclass, or an object with `model_dump` (pydantic's)."""
    if isinstance(message, Mapping):
        fields = message
    elif hasattr(message, "model_dump"):
        # Unset fields are None and must not be sent as null.
        fields = message.model_dump(exclude_none=True)
        if "content" not in fields and hasattr(message, "content"):
            fields = {**fields, "content": None}
    elif dataclasses.is_dataclass(message) and not isinstance(message, type):
        fields = {
            field.name: getattr(message, field.name)
            for field in dataclasses.fields(message)
            if field.name == "content" or getattr(message, field.name) is not None
        }
    else:
        raise TypeError(
            f"{where} must be a message, an object with role and content, got {describe(message)}"
        )
    if not isinstance(fields, Mapping):
        raise TypeError(f"{where} must be a message, got {describe(message)}")
    plain: dict[str, Any] = json_of(fields, where)
    return plain


def texts_or_messages(value: object, where: str) -> str | list[dict[str, Any]]:
    """A prompt or a completion."""
    value = scalar_of(value)
    if isinstance(value, str):
        return _plain_text(value)
    if is_list(value):
        messages: Iterable[Any] = rows_of(value)
        return [
            object_of_message(message, f"{where}[{index}]")
            for index, message in enumerate(messages)
        ]
    hint = "; decode it first" if isinstance(value, (bytes, bytearray)) else ""
    raise TypeError(f"{where} must be a string or a list of messages, got {describe(value)}{hint}")


def spans_of(value: Any, where: str) -> list[Sequence[int]]:
    """`[start, end)` pairs, as lists or tuples."""
    rows = rows_of(value)
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise TypeError(f"{where} must be a list of [start, end), got {describe(value)}")
    # There is one span per token, so the common case is returned without a copy.
    return [
        row
        if type(row) is tuple and len(row) == 2 and type(row[0]) is type(row[1]) is int
        else _span(row, where, index)
        for index, row in enumerate(rows)
    ]


def _span(row: Any, where: str, index: int) -> list[int]:
    try:
        if isinstance(row, (str, bytes, Mapping)):
            raise TypeError
        start, end = rows_of(row)
    except (TypeError, ValueError):
        got = f"a list of {len(row)}" if is_list(row) and hasattr(row, "__len__") else describe(row)
        raise ValueError(f"{where}[{index}] must be [start, end), got {got}") from None
    if type(start) is int and type(end) is int:
        return [start, end]
    place = f"{where}[{index}]"
    return [integer_of(start, f"{place}[0]"), integer_of(end, f"{place}[1]")]


def _plain_text(value: str) -> str:
    return str.__str__(value)  # str() of an enum member is its name


def _writable(value: int, where: str) -> int:
    if value.bit_length() > 3 * _MOST_DIGITS:
        raise ValueError(f"{where} has more digits than can be sent")
    return value
