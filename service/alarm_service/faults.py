"""What is wrong with a caller's data, field by field, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_models.errors import quoted

__all__ = ["explained", "shortened"]

#: As many characters of a name or a number that a caller sent are said again.
_MAX_SAID = 200

#: As many faults as one sentence names.
_MAX_FAULTS = 5

#: Messages of validators may quote what they got.
_MAX_MESSAGE = 500

#: What pydantic says on the way to a fault that is no name on the wire: which of a field's types.
_UNSAID = ("function-", "list[")


def explained(faults: Sequence[Mapping[str, Any]], within: str | None = None) -> str:
    """Name each of pydantic's faults by its field, with what it got.

    ``within`` is what the fields' paths begin with, which is not said.
    """
    lines = [
        f"{_path(fault['loc'], within)}: {shortened(fault['msg'], _MAX_MESSAGE)}{_got(fault)}"
        for fault in faults[:_MAX_FAULTS]
    ]
    if len(faults) > _MAX_FAULTS:
        lines.append(f"and {len(faults) - _MAX_FAULTS} more")
    return "; ".join(lines)


def shortened(text: str, most: int = _MAX_SAID) -> str:
    """Return a text of a caller's with no more than its first ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _path(location: Sequence[str | int], within: str | None) -> str:
    names = [_name(part) for part in location if not str(part).startswith(_UNSAID)]
    if within is not None:
        names = names[1:]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names)
    return path.lstrip(".") or within or "the whole"


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
