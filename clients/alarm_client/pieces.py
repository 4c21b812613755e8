"""What each token adds to a text, as characters or as bytes, laid end to end with exact spans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
Piece: TypeAlias = str | bytes
ReadBytes: TypeAlias = Callable[[bytes], tuple[str, Sequence[int]]]

REPLACEMENT = "\ufffd"


def lay(pieces: Sequence[Piece], read_bytes: ReadBytes) -> tuple[str, list[Span]]:
    """The text of the pieces and the span of each.

    Neighbouring bytes are read as one, and a character belongs to every piece that holds a byte of
    it. A piece without content is an empty span where the next one starts.
    """
    texts: list[str] = []
    length = 0
    spans: dict[int, Span] = {}
    solid = [(index, piece) for index, piece in enumerate(pieces) if piece]
    for _, run in groupby(solid, key=lambda item: isinstance(item[1], bytes)):
        text, placed = _lay_run(list(run), read_bytes)
        for index, (start, end) in placed:
            spans[index] = (length + start, length + end)
        texts.append(text)
        length += len(text)
    return "".join(texts), _fill(spans, len(pieces), length)


def read_utf8(data: bytes) -> tuple[str, Sequence[int]]:
    """The text of bytes, U+FFFD for each longest invalid part, and the character of each byte."""
    text = data.decode("utf-8", "replace")
    owners: list[int] = []
    for index, character in enumerate(text):
        owners += [index] * _num_bytes(character, data, len(owners))
    return text, owners


def _num_bytes(character: str, data: bytes, start: int) -> int:
    """How many bytes a character was read from; U+FFFD stands for itself or an invalid part."""
    if character != REPLACEMENT or data.startswith(REPLACEMENT.encode(), start):
        return len(character.encode())
    try:
        data[start : start + 4].decode()
    except UnicodeDecodeError as error:
        return error.end - error.start
    return 1


def read_utf8_or_nothing(data: bytes) -> tuple[str, Sequence[int]]:
    """The text of bytes, or one U+FFFD a byte if any is invalid, and the character of each byte."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return REPLACEMENT * len(data), range(len(data))
    return read_utf8(data)


def byte_of_letter() -> dict[str, int]:
    """Byte-level vocabularies write a byte as a letter: itself if printable, else past 255."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _lay_run(
    run: Sequence[tuple[int, Piece]], read_bytes: ReadBytes
) -> tuple[str, list[tuple[int, Span]]]:
    strings = [piece for _, piece in run if isinstance(piece, str)]
    if strings:
        text = "".join(strings)
        owners: Sequence[int] = range(len(text))
    else:
        text, owners = read_bytes(b"".join(piece for _, piece in run if isinstance(piece, bytes)))
    ends = accumulate(len(piece) for _, piece in run)
    return text, [
        (index, (owners[end - len(piece)], owners[end - 1] + 1))
        for (index, piece), end in zip(run, ends, strict=True)
    ]


def _owners(data: bytes, first: int) -> Iterable[int]:
    # In valid UTF-8 every byte but 0b10xxxxxx begins a character.
    begun = accumulate((byte & 0xC0) != 0x80 for byte in data)
    return (first + count - 1 for count in begun)


def _fill(spans: dict[int, Span], num_pieces: int, length: int) -> list[Span]:
    filled: list[Span] = []
    following = length
    for index in reversed(range(num_pieces)):
        span = spans.get(index, (following, following))
        following = span[0]
        filled.append(span)
    return filled[::-1]
