"""What is wrong with a caller's data, field by field, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["explained"]

#: As many faults as one sentence names.
_MAX_FAULTS = 5

#: What pydantic says on the way to a fault that is no name on the wire: which of a field's types.
_UNSAID = ("function-", "list[")


def explained(faults: Sequence[Mapping[str, Any]], within: str | None = None) -> str:
    """Name each of pydantic's faults by its field, with what it got.

    ``within`` is what the fields' paths begin with, which is not said.
    """
    lines = [
        f"{_path(fault['loc'], within)}: {fault['msg']}{_got(fault)}"
        for fault in faults[:_MAX_FAULTS]
    ]
    if len(faults) > _MAX_FAULTS:
        lines.append(f"and {len(faults) - _MAX_FAULTS} more")
    return "; ".join(lines)


def _path(location: Sequence[str | int], within: str | None) -> str:
    names = [part for part in location if not str(part).startswith(_UNSAID)]
    if within is not None:
        names = names[1:]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names)
    return path.lstrip(".") or within or "the whole"


def _got(fault: Mapping[str, Any]) -> str:
    if fault["type"] in ("missing", "extra_forbidden"):
        return ""
    value = fault.get("input")
    if isinstance(value, bytes):
        return " (got a body without `Content-Type: application/json`)"
    if isinstance(value, str | list | tuple | dict):
        return f" (got a {type(value).__name__} of length {len(value)})"
    return f" (got {value!r})"
