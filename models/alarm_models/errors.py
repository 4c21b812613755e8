"""What can go wrong with a recipe, a checkpoint or one sample."""

from __future__ import annotations

__all__ = [
    "AddressError",
    "AlarmModelsError",
    "CheckpointError",
    "NoRoomError",
    "RecipeError",
    "SampleError",
    "UnreachableError",
    "quoted",
]

#: As many characters of what a caller sent are said again in a message.
_MAX_QUOTED = 200


def quoted(value: object) -> str:
    """Return a caller's name or number as messages quote it: its first 200 characters."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number too long to show"
    return text if len(text) <= _MAX_QUOTED else f"{text[: _MAX_QUOTED - 1]}…"


class AlarmModelsError(Exception):
    """The root of this package's errors."""


class RecipeError(AlarmModelsError):
    """A recipe cannot be read or contradicts itself; the message names the key."""


class CheckpointError(AlarmModelsError):
    """A checkpoint cannot be had or does not fit its kind; the message says what to do."""


class AddressError(CheckpointError):
    """A server cannot be asked at the address, or by the proxy, that is set; says which."""


class UnreachableError(CheckpointError):
    """A server that a model needs does not answer, and may yet."""


class NoRoomError(UnreachableError):
    """A cluster has no capacity for a model's replicas yet; the message says what to set."""


class SampleError(AlarmModelsError):
    """One sample cannot be scored; its neighbours can.

    ``code`` is ``too_long``, ``non_finite``, ``invalid_sample`` or ``model_failed``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        """Be pickled whole, for who scores in other processes."""
        return type(self), (self.code, self.message)
