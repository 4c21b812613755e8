"""Where each policy token lies in the completion, from the ids that were sampled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from alarm_client.pieces import (
    Piece,
    ReadBytes,
    Span,
    byte_of_letter,
    lay,
    read_utf8,
    read_utf8_or_nothing,
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    @property
    def all_special_ids(self) -> Sequence[int]:
        """The ids that are not text."""

    def decode(self, token_ids: Any, **options: Any) -> Any:
        """The text of ids."""

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The vocabulary's own writing of ids."""


def token_offsets(token_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[Span]]:
    """The completion to send for these ids, and one `[start, end)` in its characters a token.

    The text is `tokenizer.decode(ids, skip_special_tokens=True,
    clean_up_tokenization_spaces=False)`. Special tokens are empty spans at their place. Tokens
    that share a character all get its span. For many calls make one `PolicyTokens`.
    """
    return PolicyTokens(tokenizer).locate(token_ids)


class PolicyTokens:
    """A policy's tokenizer, and what it has learnt about how its tokens write text.

    Each way to read the tokens is compared with the tokenizer's own decoding of the whole; where
    none agrees, every prefix is decoded, which is exact but takes quadratic time.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        self._byte_of_letter = byte_of_letter()
        self._added: dict[int, str] = {}

    def locate(self, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
        """As `token_offsets`, for this tokenizer."""
        plain = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [int(token_id) for token_id in plain]
        text = self._decode(ids)
        for pieces, read_bytes in self._readings(ids):
            laid, spans = lay(pieces, read_bytes)
            if laid == text:
                return text, spans
        return text, self._by_prefixes(ids, text)

    def _readings(self, ids: Sequence[int]) -> Iterator[tuple[list[Piece], ReadBytes]]:
        """What each token writes by each family of tokenizers, the cheapest first."""
        tokens: list[str] = [
            "" if token is None or token_id in self._special else token
            for token_id, token in zip(ids, self._tokenizer.convert_ids_to_tokens(ids), strict=True)
        ]
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
        """Byte-level tokens: a letter a byte, added tokens as they are."""
        try:
            return bytes(map(self._byte_of_letter.__getitem__, token))
        except KeyError:
            return token.encode("utf-8", "replace")

    def _as_written(self, token_id: int, token: str) -> str:
        """Sentencepiece tokens."""
        return token.replace("\u2581", " ")

    def _in_context(self, token_id: int, token: str) -> str:
        """Tokens that write the same after any other, so also after themselves (word pieces)."""
        if not token:
            return ""
        if token_id not in self._added:
            twice = self._decode([token_id, token_id])
            self._added[token_id] = twice[len(self._decode([token_id])) :]
        return self._added[token_id]

    def _by_prefixes(self, ids: Sequence[int], text: str) -> list[Span]:
        """Spans from the growth of the decoded prefixes; a character begun but not ended counts."""
        spans: list[Span] = []
        settled = 0
        for index, token_id in enumerate(ids):
            prefix = self._decode(ids[: index + 1])
            start, settled = settled, max(settled, _agreement(prefix, text, settled))
            is_open = token_id not in self._special and settled < min(len(prefix), len(text))
            spans.append((start, start + 1 if settled == start and is_open else settled))
        return spans


_FALLBACK_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _fallback_byte(token: str) -> bytes:
    match = _FALLBACK_BYTE.fullmatch(token)
    return bytes.fromhex(match[1]) if match else b""


def _agreement(prefix: str, text: str, settled: int) -> int:
    """How many leading characters two texts share, of which `settled` may be known."""
    if not prefix.startswith(text[:settled]):
        return 0
    for index in range(settled, min(len(prefix), len(text))):
        if prefix[index] != text[index]:
            return index
    return min(len(prefix), len(text))


def _special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = {token_id for token_id, token in added.items() if getattr(token, "special", False)}
    return frozenset(tokenizer.all_special_ids) | marked
