"""Parses large JSON in pieces, so that other threads run between them.

Python's own parser holds the GIL until it is done, seconds for the largest bodies. Here numpy finds
the commas between a large value's members without the GIL, and the parser gets as many members at
once as fill a small piece. The result equals that of parsing the whole, except that spans are
packed: millions of small lists would keep the garbage collector busy, which holds the GIL too.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alarm_models.types import PackedSpans

__all__ = ["MAX_OFFSET", "TooManyValues", "read_json"]


class TooManyValues(ValueError):
    """A body has more JSON values than any request needs; the message has the limit."""


#: The last offset that a span may have.
MAX_OFFSET = 1 << 40

_PIECE_BYTES = 128 << 10
_WINDOW_BYTES = 1 << 20

_CONTAINERS = frozenset({list, dict})

#: Maximum nesting of large values; no request of this API has as many.
_MAX_LEVELS = 12

#: Limits of one body, not counting packed spans: a value takes ten to a hundred bytes, and freeing
#: this many at once holds the GIL for a tenth of a second.
_MAX_VALUES = 4_000_000
_MAX_CONTAINERS = 500_000

#: The fields of spans: lists of `[start, end]`, or objects of such lists.
_SPANS, _SPANS_BY_NAME = "token_offsets", "segments"

#: Fewer spans are not packed.
_LEAST_PACKED = 32

#: Bytes of a text up to its end, or to where a cut would leave half an escape.
_CHARACTERS = re.compile(rb"(?:[^\\]++|\\(?:u[0-9A-Fa-f]{4}|[^u]))*+")
#: The first half of a character that is written as two escapes.
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]")

_WHITE = b" \t\n\r"
_QUOTE, _COMMA, _BACKSLASH = b'",\\'


def read_json(body: bytes, *, packs_spans: bool = True) -> Any:
    """Read a body as `json.loads` does, spans packed; raise `ValueError` if it is not JSON.

    Raises `TooManyValues`, a `ValueError`, for millions of small values, which take many times the
    memory of the body. Without ``packs_spans`` the result can be serialized as JSON.
    """
    encoding = json.detect_encoding(body)
    if encoding != "utf-8":  # another, or a byte order mark
        body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
    return _Reader(body, packs_spans=packs_spans).value(0, len(body), 0, None, in_segments=False)


class _Reader:
    """Reads the values of one body."""

    def __init__(self, body: bytes, *, packs_spans: bool) -> None:
        self._body = body
        self._packs_spans = packs_spans
        self._bytes = np.frombuffer(body, np.uint8)
        self._num_values = 0
        self._num_containers = 0
        self._decoder = json.JSONDecoder(object_hook=_with_packed_spans if packs_spans else None)

    def value(
        self, start: int, stop: int, level: int, key: str | None, *, in_segments: bool
    ) -> Any:
        """Read the value between two positions; ``key`` is its name in an object."""
        start, stop = self._stripped(start, stop)
        first = self._body[start : start + 1]
        if stop - start <= _PIECE_BYTES or first not in (b"[", b"{", b'"'):
            return self._read(self._body[start:stop])
        if first == b'"':
            return _long_text(self._body[start:stop])
        if level == _MAX_LEVELS:
            raise ValueError("it is nested too deeply")
        if self._body[stop - 1 : stop] != (b"]" if first == b"[" else b"}"):
            raise ValueError("a bracket is not closed")
        if first == b"[":
            return self._list(
                start, stop, level, may_pack=self._packs_spans and (in_segments or key == _SPANS)
            )
        return self._object(start, stop, level, is_segments=key == _SPANS_BY_NAME)

    def _list(self, start: int, stop: int, level: int, *, may_pack: bool) -> Any:
        members: list[Any] = []
        flat = array("q")
        for begin, end, is_large in self._batches(start, stop):
            if is_large:
                batch = [self.value(begin, end, level + 1, None, in_segments=False)]
            else:
                batch = self._read(b"[%s]" % self._body[begin:end])
            pairs = _flat(batch) if may_pack else None
            if pairs is None and may_pack:
                self._count(len(flat), len(flat) // 2)
                members = [[*span] for span in PackedSpans(flat)]
                may_pack = False
            if pairs is None:
                if not is_large:
                    self._count_within(batch)
                members += batch
            else:
                flat.extend(pairs)
        return PackedSpans(flat) if may_pack else members

    def _object(self, start: int, stop: int, level: int, *, is_segments: bool) -> Any:
        members: dict[str, Any] = {}
        for begin, end, is_large in self._batches(start, stop):
            if is_large:
                key, at = self._key(begin, end)
                members[key] = self.value(at, end, level + 1, key, in_segments=is_segments)
            else:
                batch = self._read(b"{%s}" % self._body[begin:end])
                self._count_within(batch)
                members |= batch
        return _with_packed_spans(members) if self._packs_spans else members

    def _count_within(self, read: Any) -> None:
        """Count the values that were read at once, without packed spans."""
        containers = [read]
        num_values = 0
        for one in containers:  # it grows meanwhile
            values = one if type(one) is list else list(one.values())
            num_values += len(values)
            if not _CONTAINERS.isdisjoint(map(type, values)):
                containers += [value for value in values if type(value) in _CONTAINERS]
        self._count(num_values, len(containers) - 1)

    def _count(self, num_values: int, num_containers: int) -> None:
        self._num_values += num_values
        self._num_containers += num_containers
        if self._num_containers > _MAX_CONTAINERS:
            raise TooManyValues(f"the body has over {_MAX_CONTAINERS} lists and objects")
        if self._num_values > _MAX_VALUES:
            raise TooManyValues(f"the body has over {_MAX_VALUES} values")

    def _key(self, start: int, stop: int) -> tuple[str, int]:
        """Return the name of an object's member, and the start of its value."""
        start, _ = self._stripped(start, stop)
        end = start
        while True:
            # Only the text after the last quote is checked, since a name may have millions of
            # quotes.
            begin, end = end + 1, self._body.find(b'"', end + 1, stop)
            if end < 0 or self._body[start : start + 1] != b'"':
                raise ValueError("a name is missing")
            before = self._body[begin:end]
            if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
                break
        colon, _ = self._stripped(end + 1, stop)
        if self._body[colon : colon + 1] != b":":
            raise ValueError("a colon is missing")
        return _long_text(self._body[start : end + 1]), colon + 1

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the spans of members that fill a piece, or of a single larger member."""
        begin, held = start + 1, np.empty(0, np.int64)
        for commas, is_last in self._commas(start, stop):
            ends = np.append(held, np.append(commas, stop - 1) if is_last else commas)
            index = 0
            while index < len(ends):
                following = int(np.searchsorted(ends, begin + _PIECE_BYTES, side="right"))
                if following == len(ends) and not is_last:
                    break  # the next window may have more of this piece
                is_large = following <= index
                following = max(following, index + 1)
                end = int(ends[following - 1])
                first, last = self._stripped(begin, end)
                if first < last:
                    yield first, last, is_large
                elif (begin, end) != (start + 1, stop - 1):
                    raise ValueError("a value is missing before a comma")
                begin, index = end + 1, following
            held = ends[index:][-1:]

    def _commas(self, start: int, stop: int) -> Iterator[tuple[NDArray[np.int64], bool]]:
        """Yield the commas between the members of the list or object between two positions.

        They come window by window, the last one with True.
        """
        depth, in_text, is_escaped = 0, False, False
        for at in range(start, stop, _WINDOW_BYTES):
            window = self._bytes[at : min(at + _WINDOW_BYTES, stop)]
            quotes = window == _QUOTE
            slashes = np.flatnonzero(window == _BACKSLASH)
            if is_escaped or len(slashes):
                escaped, is_escaped = _escaped(slashes, len(window), first=is_escaped)
                quotes[escaped] = False
            inside = np.cumsum(quotes, dtype=np.uint8) & 1 != in_text
            in_text = bool(inside[-1])
            brackets = window | 0x20  # which makes of [ and ] what { and } are
            steps = ((brackets == 0x7B) & ~inside).astype(np.int8)
            steps -= (brackets == 0x7D) & ~inside
            depths = np.cumsum(steps, dtype=np.int32) + depth
            depth = int(depths[-1])
            is_last = at + len(window) == stop
            if (depths[:-1] <= 0).any() or (depth <= 0) != is_last or depth < 0:
                raise ValueError("brackets do not match")
            yield np.flatnonzero((window == _COMMA) & ~inside & (depths == 1)) + at, is_last

    def _stripped(self, start: int, stop: int) -> tuple[int, int]:
        """Strip whitespace at both ends."""
        while start < stop and self._body[start] in _WHITE:
            piece = self._body[start : min(start + _PIECE_BYTES, stop)]
            start += len(piece) - len(piece.lstrip(_WHITE))
        while start < stop and self._body[stop - 1] in _WHITE:
            piece = self._body[max(start, stop - _PIECE_BYTES) : stop]
            stop -= len(piece) - len(piece.rstrip(_WHITE))
        return start, stop

    def _read(self, text: bytes) -> Any:
        return self._decoder.decode(text.decode("utf-8", "surrogatepass"))


def _escaped(
    slashes: NDArray[np.int64], size: int, *, first: bool
) -> tuple[NDArray[np.int64], bool]:
    """Return which bytes are escaped by backslashes, and whether the next byte is.

    ``first``: the first byte is escaped by what was before.
    """
    if not len(slashes):
        return np.zeros(1, np.int64), False
    is_begin = np.diff(slashes, prepend=slashes[0] - 2) != 1
    begins = slashes[is_begin]
    lengths = np.diff(np.append(np.flatnonzero(is_begin), len(slashes)))
    behind = begins + lengths
    if first and begins[0] == 0:
        lengths[0] -= 1  # the first of them is escaped itself
    escaped = behind[lengths % 2 == 1]
    is_next = bool(len(escaped)) and int(escaped[-1]) == size
    escaped = escaped[escaped < size]
    return (np.append(escaped, 0) if first else escaped), is_next


def _long_text(text: bytes) -> str:
    """Read one string in pieces that split no character and no escape."""
    inside, parts, at = text[1:-1], [], 0
    while at < len(inside):
        whole = _CHARACTERS.match(inside, at, at + _PIECE_BYTES)
        end = at if whole is None else whole.end()
        while end < len(inside) and inside[end] & 0xC0 == 0x80:  # UTF-8 goes on
            end -= 1
        before = inside[at : end - 5]
        is_escape = (len(before) - len(before.rstrip(b"\\"))) % 2 == 1
        if is_escape and end < len(inside) and _HIGH_SURROGATE.match(inside, end - 6, end):
            end -= 6
        if end <= at:
            raise ValueError("a string has an invalid escape")
        part = json.loads(b'"%s"' % inside[at:end])
        if not isinstance(part, str):
            raise ValueError("a string is not closed")
        parts.append(part)
        at = end
    return "".join(parts)


def _with_packed_spans(members: dict[str, Any]) -> dict[str, Any]:
    if _SPANS in members:
        members[_SPANS] = _packed(members[_SPANS])
    segments = members.get(_SPANS_BY_NAME)
    if isinstance(segments, dict):
        for name, spans in segments.items():
            segments[name] = _packed(spans)
    return members


def _packed(spans: Any) -> Any:
    if type(spans) is not list or len(spans) < _LEAST_PACKED:
        return spans
    flat = _flat(spans)
    return spans if flat is None else PackedSpans(flat)


def _flat(spans: list[Any]) -> array[int] | None:
    """Return the numbers of valid spans, flattened; None if one is invalid."""
    if not spans or set(map(type, spans)) != {list} or set(map(len, spans)) != {2}:
        return None
    flat = list(chain.from_iterable(spans))
    if set(map(type, flat)) != {int} or min(flat) < 0 or max(flat) > MAX_OFFSET:
        return None
    return array("q", flat)
