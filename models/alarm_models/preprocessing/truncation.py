"""Truncation of samples that exceed the model's limit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from alarm_models.errors import SampleError
from alarm_models.types import Span

__all__ = ["TokenIds", "Truncation", "fit", "without_prompt_start"]


class Truncation(StrEnum):
    """Truncation strategies of recipes."""

    PROMPT = "prompt"
    RIGHT = "right"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Token ids with the range of tokens that came from the prompt.

    ``num_prefix`` and ``num_suffix`` count the special tokens around a text and its suffix, which
    are never truncated. ``types`` are token type ids, or empty. ``places`` are the tokens at the
    anchor positions. ``copies`` are earlier occurrences of the prompt; all are truncated equally.
    """

    ids: tuple[int, ...]
    prompt: Span
    num_prefix: int
    num_suffix: int
    token_type_ids: tuple[int, ...] = ()
    anchor_positions: tuple[int, ...] = ()
    copies: tuple[Span, ...] = ()

    def without(self, start: int, stop: int, prompt: Span) -> TokenIds:
        """Remove a range of tokens; ``prompt`` is the new span of the prompt."""
        ids = self.ids[:start] + self.ids[stop:]
        types = self.token_type_ids[:start] + self.token_type_ids[stop:]
        places = tuple(
            place if place < start else place - (stop - start)
            for place in self.anchor_positions
            if not start <= place < stop
        )
        return TokenIds(ids, prompt, self.num_prefix, self.num_suffix, types, places, self.copies)


def fit(tokens: TokenIds, max_tokens: int, truncation: Truncation) -> tuple[TokenIds, bool]:
    """Truncate to the limit; return the tokens and whether any were dropped.

    `Truncation.PROMPT` drops tokens from the prompt's start; `Truncation.RIGHT` keeps the head, as
    the paper's code does. Raises `SampleError` (``too_long``) if that is not sufficient.
    """
    excess = len(tokens.ids) - max_tokens
    if excess <= 0:
        return tokens, False
    if truncation is Truncation.RIGHT:
        end = len(tokens.ids) - tokens.num_suffix
        return tokens.without(max(end - excess, 0), end, tokens.prompt), True
    places = [*tokens.copies, tokens.prompt]
    share = -(-excess // len(places))
    is_short = any(share > place.end - place.start for place in places)
    if truncation is Truncation.ERROR or is_short:
        raise SampleError("too_long", _too_long(tokens, max_tokens, truncation))
    return without_prompt_start(tokens, share), True


def without_prompt_start(tokens: TokenIds, count: int) -> TokenIds:
    """Drop this many tokens from the start of each occurrence of the prompt."""
    places = [*tokens.copies, tokens.prompt]
    # From last to first, so that the earlier spans stay valid.
    for place in reversed(places):
        tokens = tokens.without(place.start, place.start + count, tokens.prompt)
    kept = [
        Span(place.start - index * count, place.end - (index + 1) * count)
        for index, place in enumerate(places)
    ]
    return replace(tokens, prompt=kept[-1], copies=tuple(kept[:-1]))


def _too_long(tokens: TokenIds, max_tokens: int, truncation: Truncation) -> str:
    limit = f"the model takes {max_tokens} (`max_tokens` of the recipe, or its own limit)"
    if truncation is Truncation.ERROR:
        return f"the sample has {len(tokens.ids)} tokens, {limit}"
    places = [*tokens.copies, tokens.prompt]
    num_rest = len(tokens.ids) - sum(place.end - place.start for place in places)
    return f"without any prompt the sample has {num_rest} tokens, {limit}"
