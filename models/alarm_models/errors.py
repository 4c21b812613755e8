"""Errors of recipes, checkpoints and single samples."""

from __future__ import annotations

import json

__all__ = [
    "AddressError",
    "AlarmModelsError",
    "CheckpointError",
    "NoRoomError",
    "RecipeError",
    "SampleError",
    "UnreachableError",
    "is_exception_or_panic",
    "is_rust_panic",
    "printable",
    "printable_json",
    "quoted",
    "quoted_answer",
    "shortened",
]

#: Characters of a caller's text that messages quote.
_MAX_QUOTED = 200


def is_rust_panic(error: BaseException) -> bool:
    """Return whether a library in Rust panicked, such as a tokenizer; that is no `Exception`."""
    return type(error).__module__ == "pyo3_runtime"


def is_exception_or_panic(error: BaseException) -> bool:
    """Return whether called code failed, rather than was interrupted or cancelled."""
    return isinstance(error, Exception) or is_rust_panic(error)


def quoted(value: object) -> str:
    """Return a caller's name or number as messages quote it: its first 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number too long to show"
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 1]}…"


def printable(text: str) -> str:
    """Return a text in which characters that cannot be printed are escaped as in JSON."""
    return "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)


def printable_json(value: object) -> str:
    """Return a value's JSON, in which characters that cannot be printed are escaped."""
    return printable(json.dumps(value, ensure_ascii=False))


def quoted_answer(text: str, *, from_end: bool = False) -> str:
    """Return a model's answer as messages quote it: its first or last 200 characters.

    A text is written as a JSON string, one that begins like JSON as it is; characters that cannot
    be printed are escaped.
    """
    part = text[-_MAX_QUOTED:] if from_end else text[:_MAX_QUOTED]
    shown = printable(part) if text.startswith(("{", "[")) else printable_json(part)
    if max(len(text), len(shown)) <= _MAX_QUOTED:
        return shown
    return f"…{shown[-_MAX_QUOTED:]}" if from_end else f"{shown[:_MAX_QUOTED]}…"


def shortened(value: object) -> str:
    """Return a caller's text as messages repeat it without quotes: its first 200 characters."""
    text = str(value)
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 1]}…"


class AlarmModelsError(Exception):
    """The root of this package's errors."""


class RecipeError(AlarmModelsError):
    """A recipe cannot be read or contradicts itself; the message names the key."""


class CheckpointError(AlarmModelsError):
    """A checkpoint cannot be loaded or does not fit its kind; the message says what to do."""


class AddressError(CheckpointError):
    """The address or the proxy that is set for a server cannot be used; the message says which."""


class UnreachableError(CheckpointError):
    """A server that a model needs does not respond, and may do so later."""


class NoRoomError(UnreachableError):
    """A cluster has no capacity for a model's replicas yet; the message says what to set."""


class SampleError(AlarmModelsError):
    """One sample cannot be scored; its neighbors can.

    ``code`` is ``too_long``, ``non_finite``, ``invalid_sample``, ``model_failed``,
    ``unsupported_content``, ``group_incomplete``, ``group_conflict``, ``overlong``,
    ``dropped`` (by the rule, on purpose) or ``budget_exceeded`` (of a judge's endpoint).
    ``summary`` is the message without ``quote``, a text that logs must not contain.
    """

    def __init__(self, code: str, message: str, quote: str = "") -> None:
        self.code = code
        self.message = f"{message}: {quote}" if quote else message
        super().__init__(self.message)
        self.summary = message
        self.quote = quote

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str]]:
        """Pickle what it is made of, so that scoring in other processes can raise it."""
        return type(self), (self.code, self.summary, self.quote)
