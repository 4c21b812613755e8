"""ReadText: a text as a model reads it, token by token, with the tokens that truncation dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from alarm_models.preprocessing.truncation import TokenIds, Truncation, fit
from alarm_models.types import Shown, Span

__all__ = ["ReadSample", "ReadText", "dropped_tokens"]


@dataclass(frozen=True, slots=True)
class ReadText:
    """The tokens of a text before truncation, special tokens included.

    ``completion`` is the range of tokens that overlap the completion, None if it is unknown.
    ``dropped`` are the ranges of tokens that truncation removed, in order.
    """

    ids: tuple[int, ...]
    completion: Span | None = None
    dropped: tuple[Span, ...] = ()

    @property
    def kept_ids(self) -> tuple[int, ...]:
        """The token ids that the network gets."""
        kept: tuple[int, ...] = ()
        start = 0
        for span in self.dropped:
            kept += self.ids[start : span.start]
            start = span.end
        return kept + self.ids[start:]


@dataclass(frozen=True, slots=True)
class ReadSample:
    """What a model reads of a sample: its texts, and what they lack.

    ``num_tokens``, ``truncated`` and ``omitted`` are those of its score. ``texts`` are empty for a
    model that reads no tokens. ``shown`` is what was shown of the sample as sent; None if all.
    """

    texts: tuple[ReadText, ...]
    num_tokens: int = 0
    truncated: bool = False
    omitted: tuple[str, ...] = ()
    shown: Shown | None = None

    def left_out(self, num_characters: int) -> tuple[Span, ...]:
        """Return the parts of a completion of this length that the model was not shown."""
        pieces = None if self.shown is None else self.shown.pieces
        if pieces is None:
            return ()
        found = []
        at = 0
        for piece in sorted(pieces, key=lambda one: one.given):
            if piece.given > at:
                found.append(Span(at, piece.given))
            at = max(at, piece.given + piece.length)
        return (*found, Span(at, num_characters)) if at < num_characters else tuple(found)


def dropped_tokens(tokens: TokenIds, max_tokens: int, truncation: Truncation) -> tuple[Span, ...]:
    """Return the ranges of tokens that `fit` drops; raise `SampleError` as it does."""
    numbered = replace(tokens, ids=tuple(range(len(tokens.ids))))
    kept, _ = fit(numbered, max_tokens, truncation)
    return _gaps(kept.ids, len(tokens.ids))


def _gaps(kept: Sequence[int], length: int) -> tuple[Span, ...]:
    """Return the ranges of ``range(length)`` that are not in a sorted list."""
    bounds = zip((-1, *kept), (*kept, length), strict=True)
    return tuple(Span(before + 1, after) for before, after in bounds if before + 1 < after)
