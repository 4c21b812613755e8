"""Truncation: what is cut when a sample is longer than its model's limit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from alarm_models.errors import SampleError
from alarm_models.types import Span

__all__ = ["TokenIds", "Truncation", "fit"]


class Truncation(StrEnum):
    """Truncation strategies that a recipe may name."""

    PROMPT = "prompt"
    RIGHT = "right"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids with the range of tokens that came from the prompt.

    ``num_prefix`` and ``num_suffix`` count the special tokens that the tokenizer puts around a
    text, or that a text ends with and must; no truncation drops them. ``types`` are token type
    ids, or none. ``places`` are the tokens that were asked for by their characters. ``copies`` are
    the prompt's other places, before that one: all are shortened alike.
    """

    ids: tuple[int, ...]
    prompt: Span
    num_prefix: int
    num_suffix: int
    token_type_ids: tuple[int, ...] = ()
    anchor_positions: tuple[int, ...] = ()
    copies: tuple[Span, ...] = ()

    def without(self, start: int, stop: int, prompt: Span) -> TokenIds:
        """Return these tokens less those of a range; ``prompt`` is where the prompt is then."""
        ids = self.ids[:start] + self.ids[stop:]
        types = self.token_type_ids[:start] + self.token_type_ids[stop:]
        places = tuple(
            place if place < start else place - (stop - start)
            for place in self.anchor_positions
            if not start <= place < stop
        )
        return TokenIds(ids, prompt, self.num_prefix, self.num_suffix, types, places, self.copies)


def fit(tokens: TokenIds, max_tokens: int, truncation: Truncation) -> tuple[TokenIds, bool]:
    """Shorten the tokens to the limit, and say whether anything was dropped.

    `Truncation.PROMPT` drops tokens from the prompt's start; `Truncation.RIGHT` keeps the head, as
    the paper's code does. Raises `SampleError` (``too_long``) where that cannot be enough.
    """
    excess = len(tokens.ids) - max_tokens
    if excess <= 0:
        return tokens, False
    if truncation is Truncation.RIGHT:
        end = len(tokens.ids) - tokens.num_suffix
        return tokens.without(max(end - excess, 0), end, tokens.prompt), True
    start, stop = tokens.prompt
    if truncation is not Truncation.ERROR and tokens.copies:
        return _without_from_each(tokens, excess, max_tokens), True
    if truncation is Truncation.ERROR or excess > stop - start:
        raise SampleError("too_long", _too_long(tokens, max_tokens, truncation))
    return tokens.without(start, start + excess, Span(start, stop - excess)), True


def _without_from_each(tokens: TokenIds, excess: int, max_tokens: int) -> TokenIds:
    """Drop as many tokens from the start of each of the prompt's places."""
    places = [*tokens.copies, tokens.prompt]
    share = -(-excess // len(places))
    if any(share > place.end - place.start for place in places):
        raise SampleError("too_long", _too_long(tokens, max_tokens, Truncation.PROMPT))
    # From the last to the first, so that those before stay where they are.
    for place in reversed(places):
        tokens = tokens.without(place.start, place.start + share, tokens.prompt)
    kept = [
        Span(place.start - index * share, place.end - (index + 1) * share)
        for index, place in enumerate(places)
    ]
    return replace(tokens, prompt=kept[-1], copies=tuple(kept[:-1]))


def _too_long(tokens: TokenIds, max_tokens: int, truncation: Truncation) -> str:
    if truncation is Truncation.ERROR:
        return f"the sample has {len(tokens.ids)} tokens, the model takes {max_tokens}"
    places = [*tokens.copies, tokens.prompt]
    num_rest = len(tokens.ids) - sum(place.end - place.start for place in places)
    return f"without any prompt the sample has {num_rest} tokens, the model takes {max_tokens}"
