"""Character offsets of a policy's sampled token ids."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, Protocol, TypeAlias

from alarm_client._payloads import integer_of, is_list

Span: TypeAlias = tuple[int, int]
Piece: TypeAlias = str | bytes
ReadBytes: TypeAlias = Callable[[bytes], tuple[str, Sequence[int]]]

REPLACEMENT = "\ufffd"

# Preceding tokens that are decoded along as context: no tokenizer's output depends on more, except
# for runs of byte tokens.
_CONTEXT_SIZES = (32, 256, 2048)


def join_pieces(pieces: Sequence[Piece], read_bytes: ReadBytes) -> tuple[str, list[Span]]:
    """The text of the pieces and the span of each.

    Adjacent byte pieces are decoded together; a character belongs to every piece that has one of
    its bytes. An empty piece gets an empty span at the start of the next one.
    """
    texts: list[str] = []
    length = 0
    spans: dict[int, Span] = {}
    solid = [(index, piece) for index, piece in enumerate(pieces) if piece]
    for _, run in groupby(solid, key=lambda item: isinstance(item[1], bytes)):
        text, placed = _join_run(list(run), read_bytes)
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
    """Number of bytes of a decoded character; U+FFFD may stand for an invalid part."""
    if character != REPLACEMENT or data.startswith(REPLACEMENT.encode(), start):
        return len(character.encode())
    try:
        data[start : start + 4].decode()
    except UnicodeDecodeError as error:
        return error.end - error.start
    return 1


def read_utf8_or_nothing(data: bytes) -> tuple[str, Sequence[int]]:
    """As `read_utf8`, but one U+FFFD per byte if any byte is invalid."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return REPLACEMENT * len(data), range(len(data))
    return read_utf8(data)


def byte_of_letter() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


def _join_run(
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


def _fill(spans: dict[int, Span], num_pieces: int, length: int) -> list[Span]:
    filled: list[Span] = []
    following = length
    for index in reversed(range(num_pieces)):
        span = spans.get(index, (following, following))
        following = span[0]
        filled.append(span)
    return filled[::-1]


class Tokenizer(Protocol):
    """The methods of a Hugging Face tokenizer that are used here."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """Ids of special tokens, which are not text."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """Decode ids to text."""

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The vocabulary's form of each id."""


def token_offsets(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[Span]]:
    """The completion to send for these ids, and one `[start, end)` in characters per token.

    The text is `tokenizer.decode(ids, skip_special_tokens=True,
    clean_up_tokenization_spaces=False)`. Special tokens get empty spans. Tokens that
    share a character all get its span. Create one `PolicyTokens` for many calls.
    """
    return PolicyTokens(tokenizer).locate(token_ids)


class PolicyTokens:
    """Locates a policy's tokens in decoded text; caches how each token decodes.

    Each decoding method is verified against the tokenizer's decoding of the whole; if none agrees,
    the spans are derived from the growth of the decoded prefixes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._byte_of_letter = byte_of_letter()
        self._added: dict[int, str] = {}

    def locate(self, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
        """As `token_offsets`, for this tokenizer."""
        return self._locate(checked_ids(token_ids, "token_ids"))

    def locate_batch(
        self, rows: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None = None
    ) -> list[tuple[str, list[Span]]]:
        """As `locate`, for each row of ids: lists, or the rows of an array or a tensor.

        `masks`: same shape as `rows`, false for padding. A row gets one span per unmasked token, in
        order; without `masks` padding counts as tokens.
        """
        ids = [
            checked_ids(row, f"rows[{index}]") for index, row in enumerate(_listed(rows, "rows"))
        ]
        if masks is None:
            return [self._locate(row) for row in ids]
        kept = [_listed(mask, f"masks[{i}]") for i, mask in enumerate(_listed(masks, "masks"))]
        shape, mask_shape = [len(row) for row in ids], [len(mask) for mask in kept]
        if shape != mask_shape:
            raise ValueError(
                f"masks must have the shape of rows: {len(shape)} rows of {shape[:9]} tokens, got "
                f"{len(mask_shape)} of {mask_shape[:9]}"
            )
        return [
            self._locate([one for one, is_own in zip(row, mask, strict=True) if is_own])
            for row, mask in zip(ids, kept, strict=True)
        ]

    def _locate(self, ids: list[int]) -> tuple[str, list[Span]]:
        text = self._decode(ids)
        for pieces, read_bytes in self._readings(ids):
            joined, spans = join_pieces(pieces, read_bytes)
            if joined == text:
                return text, spans
        return text, self._by_prefixes(ids, text)

    def _readings(self, ids: Sequence[int]) -> Iterator[tuple[list[Piece], ReadBytes]]:
        """The pieces of the tokens under each family of tokenizers, the cheapest first."""
        written: list[str | bytes] = [
            "" if token is None or token_id in self._special else token
            for token_id, token in zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True)
        ]
        if any(isinstance(token, (bytes, bytearray)) for token in written):  # tiktoken's
            yield [self._utf8(*one) for one in zip(ids, written, strict=True)], read_utf8
            return
        tokens = [str(token) for token in written]
        yield [self._letters(token) for token in tokens], read_utf8
        first = next((index for index, token in enumerate(tokens) if token), None)
        alone = "" if first is None else self._decode([ids[first]])
        for write in self._as_written, self._in_context:
            pieces: list[Piece] = [
                _fallback_byte(token) or (alone if index == first else write(ids[index], token))
                for index, token in enumerate(tokens)
            ]
            yield pieces, read_utf8_or_nothing

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _letters(self, token: str) -> bytes:
        """Byte-level tokens: one letter per byte; added tokens unchanged."""
        try:
            return bytes(map(self._byte_of_letter.__getitem__, token))
        except KeyError:
            return token.encode("utf-8", "replace")

    def _utf8(self, token_id: int, token: str | bytes) -> bytes:
        """Tokens that are bytes; strings among them are added tokens, which decoding may omit."""
        if not isinstance(token, str):
            return bytes(token)
        if token and token_id not in self._added:
            self._added[token_id] = self._decode([token_id])
        return self._added[token_id].encode("utf-8", "replace") if token else b""

    def _as_written(self, token_id: int, token: str) -> str:
        """Sentencepiece tokens."""
        return token.replace("\u2581", " ")

    def _in_context(self, token_id: int, token: str) -> str:
        """Tokens that decode the same after any other token, including themselves (WordPiece)."""
        if not token:
            return ""
        if token_id not in self._added:
            twice = self._decode([token_id, token_id])
            self._added[token_id] = twice[len(self._decode([token_id])) :]
        return self._added[token_id]

    def _by_prefixes(self, ids: Sequence[int], text: str) -> list[Span]:
        """Spans from the growth of the decoded prefixes, including incomplete characters.

        Bytes that form no character decode to one U+FFFD, which appears with the first of them: a
        token that adds nothing to the text shares that character.
        """
        spans: list[Span] = []
        settled = 0
        before = _Prefix(0, "")
        known = _Known(0, 0)
        for index, token_id in enumerate(ids):
            prefix = self._prefix(ids, index + 1, known)
            start, settled = settled, max(settled, prefix.agreement(text, settled))
            is_text = token_id not in self._special
            if start < settled:
                has_begun = prefix.after(settled) == REPLACEMENT and settled < len(text)
                spans.append((start, settled + has_begun))
            elif is_text and settled < min(prefix.length, len(text)):
                spans.append((start, start + 1))
            elif (
                is_text
                and prefix.equals(before, text)
                and text.endswith(REPLACEMENT, 0, settled)
                and self._decode([token_id]) != ""
            ):
                spans.append((settled - 1, settled))
            else:
                spans.append((settled, settled))
            before = prefix
            is_whole = prefix.length == settled and not text.endswith(REPLACEMENT, 0, settled)
            if is_whole and index - known.num_tokens >= _CONTEXT_SIZES[0]:
                known = _Known(index + 1, settled)
        return _not_past_the_next(spans)

    def _prefix(self, ids: Sequence[int], end: int, known: _Known) -> _Prefix:
        """The decoded text of the first `end` ids, given the part before `known`.

        Only ids near the end are decoded, with enough preceding ids as context. If the context then
        decodes differently (an incomplete run of bytes), it is extended, up to all ids.
        """
        for size in _CONTEXT_SIZES:
            start = known.num_tokens - size
            if start <= 0:
                break
            context = self._decode(ids[start : known.num_tokens])
            both = self._decode(ids[start:end])
            if context and both.startswith(context):
                return _Prefix(known.num_characters, both[len(context) :])
        return _Prefix(0, self._decode(ids[:end]))


def _not_past_the_next(spans: Sequence[Span]) -> list[Span]:
    """Move an empty span inside a character to the start of that character."""
    following = max((end for _, end in spans), default=0)
    moved: list[Span] = []
    for start, end in reversed(spans):
        following = min(start, following)
        moved.append((following, following if start == end else end))
    return moved[::-1]


def _listed(values: Any, name: str) -> list[Any]:
    plain = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(plain, (str, bytes, Mapping)) or not isinstance(plain, Iterable):
        raise TypeError(f"{name} must be a list, an array or a tensor, got {type(values).__name__}")
    return list(plain)


def checked_ids(token_ids: Any, name: str) -> list[int]:
    """The ids of one text as a list; TypeError or ValueError names the one that is wrong."""
    return [_plain_id(value, name, index) for index, value in enumerate(_listed(token_ids, name))]


def _plain_id(value: Any, name: str, index: int) -> int:
    if type(value) is not int:
        if is_list(value):
            raise TypeError(f"{name} must be the ids of one text; use locate_batch for several")
        value = integer_of(value, f"{name}[{index}]")
    if not 0 <= value < 2**32:  # the range of tokenizers
        shown = max(-(2**40), min(value, 2**40))
        raise ValueError(f"{name}[{index}] must be a token id, got {shown}; remove masked labels")
    return int(value)


_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _fallback_byte(token: str) -> bytes:
    match = _FALLBACK_BYTE.fullmatch(token)
    return bytes.fromhex(match[1]) if match else b""


@dataclass(frozen=True, slots=True)
class _Known:
    """The first `num_tokens` ids decode to the first `num_characters` of the text."""

    num_tokens: int
    num_characters: int


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A decoded prefix: the first `num_known` characters of the text, and the rest."""

    num_known: int
    rest: str

    @property
    def length(self) -> int:
        """In characters."""
        return self.num_known + len(self.rest)

    def after(self, index: int) -> str:
        """The characters from `index` on, which is at least `num_known`."""
        return self.rest[index - self.num_known :]

    def agreement(self, text: str, settled: int) -> int:
        """Number of leading characters shared with the text; 0 unless the first `settled` are."""
        if not self.rest.startswith(text[self.num_known : settled]):
            return 0
        most = min(self.length, len(text))
        for index in range(settled, most):
            if self.rest[index - self.num_known] != text[index]:
                return index
        return most

    def equals(self, other: _Prefix, text: str) -> bool:
        """Whether another prefix of the same text is equal."""
        if self.length != other.length:
            return False
        least = min(self.num_known, other.num_known)
        return self._from(least, text) == other._from(least, text)

    def _from(self, index: int, text: str) -> str:
        return text[index : self.num_known] + self.rest


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = {token_id for token_id, token in added.items() if getattr(token, "special", False)}
    return frozenset(tokenizer.all_special_ids) | marked
