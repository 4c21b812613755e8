"""Places rewards of spans of a completion on the policy's tokens."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate

from alarm_models.types import Span

__all__ = [
    "Placement",
    "end_token",
    "per_token_values",
    "place_differences",
    "place_on_tokens",
    "place_on_turns",
    "places_on_tokens",
    "places_on_turns",
    "shown_tokens",
    "whitespace_tokens",
]

_WORD = re.compile(r"\S+")
_SPACE = re.compile(r"\s+")

#: Shares no character with any token.
_NOWHERE = Span(0, 0)


class Placement(StrEnum):
    """Which tokens get the rewards of segments."""

    #: On the last token of each segment.
    SEGMENT_ENDS = "segment-ends"
    #: On every token: negative if it overlaps a negative segment, else positive.
    TOKENS = "tokens"
    #: On the last token of the message that a segment is in, the end of the turn included.
    TURN_ENDS = "turn-ends"


def shown_tokens(tokens: Sequence[Span], judged: Sequence[Span] | None) -> list[int]:
    """Return the indices of tokens in the judged parts of a text; None judges the whole text.

    Parts are in order. Special tokens are empty; they belong to a part that they touch.
    """
    if judged is None:
        return list(range(len(tokens)))
    ends = [part.end for part in judged]

    def is_shown(token: Span) -> bool:
        # The first part that does not end before the token may only touch it, so try the next too.
        first = bisect_left(ends, token.start)
        return any(_is_in(token, part) for part in judged[first : first + 2])

    return [index for index, token in enumerate(tokens) if is_shown(token)]


def end_token(tokens: Sequence[Span], judged: Sequence[Span] | None) -> int:
    """Return the token for the reward of a whole text: the last one that was judged.

    If nothing was judged, or no token overlaps the judged parts, it is the last token.
    """
    for part in reversed(judged or ()):
        found = _last_in(part, tokens)
        if found is not None:
            return found
    return len(tokens) - 1


def place_on_turns(
    values: Sequence[tuple[Span | None, float]],
    turns: Sequence[Span],
    tokens: Sequence[Span],
    end: int,
) -> tuple[float, ...]:
    """Place each value on the last token of the turn that its span begins in.

    Empty tokens at the end of a turn (tool calls, end of turn) belong to it. Values outside all
    turns go to the token ``end``. Returns one float per token, ``[num_tokens]``.
    """
    if not tokens:
        return ()
    rewards = [0.0] * len(tokens)
    spans = [span for span, _ in values]
    for (_, value), place in zip(values, places_on_turns(spans, turns, tokens, end), strict=True):
        rewards[place] += value
    return tuple(rewards)


def places_on_turns(
    spans: Sequence[Span | None], turns: Sequence[Span], tokens: Sequence[Span], end: int
) -> list[int]:
    """Return the token of each span's value, as in `place_on_turns`; there is at least one."""
    # The first turn that ends after a place, or else at it, as empty turns do: ends may decrease,
    # their maximum does not.
    ends = list(accumulate((one.end for one in turns), max))
    last_of_turn: dict[Span, int | None] = {}
    places = []
    for span in spans:
        turn = span
        if span is not None:
            for find in (bisect_right, bisect_left):
                at = find(ends, span.start)
                if at < len(turns) and turns[at].start <= span.start:
                    turn = turns[at]
                    break
        found = None
        if turn is not None:
            if turn not in last_of_turn:
                last_of_turn[turn] = _last_in(turn, tokens)
            found = last_of_turn[turn]
        places.append(end if found is None else found)
    return places


def _last_in(part: Span, tokens: Sequence[Span]) -> int | None:
    at = bisect_right(tokens, part.end, key=_start) - 1
    while at >= 0:
        if _is_in(tokens[at], part):
            return at
        if tokens[at].start < part.start:
            return None
        at -= 1
    return None


def _start(token: Span) -> int:
    return token.start


def _is_in(token: Span, part: Span) -> bool:
    if token.start == token.end:
        return part.start <= token.start <= part.end
    return token.start < part.end and part.start < token.end


def place_on_tokens(
    values: Sequence[tuple[Span | None, float]],
    text: str,
    tokens: Sequence[Span],
    end: int | None = None,
) -> tuple[float, ...]:
    """Place each value on one token; values on the same token add up.

    A span's value goes to the last token that overlaps the span without its trailing whitespace. If
    no token overlaps the span, or there is no span (a reward of the whole completion), the value
    goes to the token ``end``, by default the last one, including end-of-text. ``tokens`` are spans
    of ``text`` with non-decreasing starts. Returns one float per token, ``[num_tokens]``. Takes
    ``O(n log n)`` time, where ``n`` is the number of tokens and values together.
    """
    if not tokens:
        return ()
    rewards = [0.0] * len(tokens)
    spans = [span for span, _ in values]
    for (_, value), place in zip(values, places_on_tokens(spans, text, tokens, end), strict=True):
        rewards[place] += value
    return tuple(rewards)


def places_on_tokens(
    spans: Sequence[Span | None], text: str, tokens: Sequence[Span], end: int | None = None
) -> list[int]:
    """Return the token of each span's value, as in `place_on_tokens`; there is at least one."""
    last = len(tokens) - 1 if end is None else end
    ends = _WithoutTrailingSpace(text)
    trimmed = [Span(span.start, ends.end(span)) if span is not None else _NOWHERE for span in spans]
    return [last if place is None else place for place in _last_overlapping(trimmed, tokens)]


def place_differences(
    start: float,
    values: Sequence[tuple[Span, float]],
    text: str,
    tokens: Sequence[Span],
    judged: Sequence[Span] | None = None,
) -> tuple[float, ...]:
    """Place each span's value minus that of the span before it on the span's last token.

    ``start`` is the value before the first span. It is placed on the first token of the ``judged``
    parts (None: the whole text), so that the rewards sum to the last value. Spans and tokens are as
    in `place_on_tokens`.
    """
    before = [start, *(value for _, value in values[:-1])]
    gains = [(span, value - last) for (span, value), last in zip(values, before, strict=True)]
    rewards = list(place_on_tokens(gains, text, tokens, end_token(tokens, judged)))
    shown = shown_tokens(tokens, judged)
    rewards[shown[0] if shown else 0] += start
    return tuple(rewards)


def per_token_values(
    errors: Sequence[Span], tokens: Sequence[Span], right: float, wrong: float
) -> tuple[float, ...]:
    """Return ``wrong`` for each token that shares a character with an error, else ``right``."""
    merged = _merged(errors)
    ends = [error.end for error in merged]

    def is_wrong(token: Span) -> bool:
        # The first error that ends past the token's start; earlier errors cannot overlap the token.
        index = bisect_right(ends, token.start)
        return token.start < token.end and index < len(ends) and merged[index].start < token.end

    return tuple(wrong if is_wrong(token) else right for token in tokens)


def whitespace_tokens(text: str) -> tuple[Span, ...]:
    """Return the words between whitespace, which replace tokens if a request has none."""
    return tuple(Span(*match.span()) for match in _WORD.finditer(text))


class _WithoutTrailingSpace:
    """Finds the ends of spans of a text without their trailing whitespace."""

    def __init__(self, text: str) -> None:
        self._num_characters = len(text)
        runs = [match.span() for match in _SPACE.finditer(text)]
        self._starts = [start for start, _ in runs]
        self._ends = [end for _, end in runs]

    def end(self, span: Span) -> int:
        """Return the span's end, or its start if it contains only whitespace."""
        end = min(span.end, self._num_characters)
        run = bisect_left(self._starts, end) - 1
        if run >= 0 and self._ends[run] >= end:
            end = self._starts[run]
        return max(span.start, end)


def _merged(spans: Sequence[Span]) -> list[Span]:
    """Return sorted spans that cover the same characters and do not touch each other."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span.start < span.end):
        if merged and start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, end))
        else:
            merged.append(Span(start, end))
    return merged


def _last_overlapping(spans: Sequence[Span], tokens: Sequence[Span]) -> list[int | None]:
    """Return for each span the last token that shares a character with it, or None.

    Spans are visited in order of their ends, so each token is added once. A token that ends no
    later than one after it can never be the last overlapping one again, so it is dropped, and the
    ends of the tokens that remain decrease.
    """
    places: list[int | None] = [None] * len(spans)
    numbers: list[int] = []
    ends: list[int] = []  # negated, so that they increase
    num_seen = 0
    for index in sorted(range(len(spans)), key=lambda index: spans[index].end):
        start, end = spans[index]
        if start >= end:
            continue
        while num_seen < len(tokens) and tokens[num_seen].start < end:
            token = tokens[num_seen]
            if token.start < token.end:
                while ends and -ends[-1] <= token.end:
                    numbers.pop()
                    ends.pop()
                numbers.append(num_seen)
                ends.append(-token.end)
            num_seen += 1
        found = bisect_left(ends, -start) - 1
        if found >= 0:
            places[index] = numbers[found]
    return places
