"""Checks the header of a GGUF file before the package gguf reads it.

That package trusts the counts in a file: it reads arrays of any length, also past the end of the
file, and arrays in arrays to any depth. It keeps about a kilobyte per item.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from alarm_models.errors import CheckpointError

__all__ = ["require_sound_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)

#: More keys and items of arrays than any vocabulary with its merges needs.
_MAX_ITEMS = 1 << 22

#: More tensors than any model has, and the most dimensions that the format allows.
_MAX_TENSORS = 1 << 16
_MAX_DIMENSIONS = 4

#: Sizes of scalars in bytes by their types in the format.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def require_sound_header(file: Path) -> None:
    """Raise `CheckpointError` if a file is cut, or its counts are not those of a model."""
    try:
        with file.open("rb") as opened:
            data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            with data:
                _Header(data).check()
    except struct.error as error:
        raise CheckpointError(f"{file} is not a complete GGUF file: its header is cut") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a complete GGUF file: {error}") from error


class _Header:
    """Walks through a header; `struct.error` and `ValueError` say what is wrong with it."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._num_items = 0

    def check(self) -> None:
        """Walk through all keys and tensors."""
        if self._data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = len(_MAGIC)
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"its version is {version}, only {_VERSIONS} are read")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > _MAX_TENSORS:
            raise ValueError(f"it counts {num_tensors} tensors, more than any model has")
        self._count(num_keys)
        for _ in range(num_keys):
            key = self._text()
            self._value(key, self._number("I"))
        for _ in range(num_tensors):
            self._tensor()

    def _value(self, key: str, type_: int) -> None:
        """Skip the value of a key."""
        if type_ != _ARRAY:
            self._items(key, type_, 1)
            return
        type_, length = self._number("I"), self._number("Q")
        self._count(length)
        self._items(key, type_, length)

    def _items(self, key: str, type_: int, length: int) -> None:
        if type_ in _SCALARS:
            self._skip(length * _SCALARS[type_])
        elif type_ == _STRING:
            for _ in range(length):
                self._skip(self._number("Q"))
        else:
            what = "an array of arrays" if type_ == _ARRAY else f"of the unknown type {type_}"
            raise ValueError(f"{key} is {what}")

    def _tensor(self) -> None:
        name, num_dimensions = self._text(), self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"{name} has {num_dimensions} dimensions")
        shape = [self._number("Q") for _ in range(num_dimensions)]
        # A type has more than a bit per number.
        if not 0 < math.prod(shape) < 8 * len(self._data):
            raise ValueError(f"{name} has the shape {shape}, which the file cannot hold")
        self._skip(4)  # its type, which the package checks
        if self._number("Q") > len(self._data):
            raise ValueError(f"{name} is beyond the end of the file")

    def _number(self, form: str) -> int:
        (number,) = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(form)
        return int(number)

    def _text(self) -> str:
        """Return a name, short enough for a message."""
        length = self._number("Q")
        start = self._at
        self._skip(length)
        return self._data[start : start + min(length, 80)].decode("utf-8", "replace")

    def _skip(self, num_bytes: int) -> None:
        if num_bytes > len(self._data) - self._at:
            raise ValueError("its header is cut, or counts more than the file holds")
        self._at += num_bytes

    def _count(self, number: int) -> None:
        self._num_items += number
        if self._num_items > _MAX_ITEMS:
            raise ValueError(f"its metadata counts over {_MAX_ITEMS} items")
