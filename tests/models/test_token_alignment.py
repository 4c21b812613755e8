from collections.abc import Sequence
from typing import SupportsIndex

from hypothesis import given
from hypothesis import strategies as st

from alarm_models.combination.token_alignment import (
    per_token_values,
    place_differences,
    place_on_tokens,
    place_on_turns,
)
from alarm_models.types import Span

#: Six tokens of "Yes, it is. No", the last one end-of-text.
TEXT = "Yes, it is. No"
TOKENS = [Span(0, 4), Span(5, 7), Span(8, 10), Span(10, 11), Span(12, 14), Span(14, 14)]


def test_place_on_tokens_segment_uses_its_last_token() -> None:
    values = [(Span(0, 11), 0.2), (Span(12, 14), 0.3)]
    assert place_on_tokens(values, TEXT, TOKENS) == (0, 0, 0, 0.2, 0.3, 0)


def test_trailing_white_space_of_a_segment_does_not_count() -> None:
    wide = [Span(0, 4), Span(4, 7), Span(7, 10), Span(10, 12), Span(12, 14), Span(14, 14)]
    assert place_on_tokens([(Span(0, 12), 0.2)], TEXT, wide) == (0, 0, 0, 0.2, 0, 0)


def test_place_on_tokens_whole_completion_uses_end_of_text() -> None:
    assert place_on_tokens([(None, 3.0)], TEXT, TOKENS) == (0, 0, 0, 0, 0, 3)


def test_place_on_tokens_segment_without_token_uses_the_last() -> None:
    cut = TOKENS[:2]
    assert place_on_tokens([(Span(12, 14), 0.5)], TEXT, cut) == (0, 0.5)


def test_two_segments_on_one_token_add_up() -> None:
    one_word = [Span(0, 11), Span(11, 11)]
    values = [(Span(0, 4), 0.25), (Span(5, 11), 0.5)]
    assert place_on_tokens(values, TEXT, one_word) == (0.75, 0)


def test_tokens_that_share_a_character_take_the_reward_on_the_later_one() -> None:
    halves = [Span(0, 1), Span(0, 1), Span(1, 1)]
    assert place_on_tokens([(Span(0, 1), 1.0)], "🙂", halves) == (0, 1, 0)


def test_place_on_tokens_empty_segment_overlaps_nothing() -> None:
    assert place_on_tokens([(Span(5, 5), 1.0)], TEXT, TOKENS) == (0, 0, 0, 0, 0, 1)


def test_without_tokens_there_is_nowhere_to_land() -> None:
    assert place_on_tokens([(None, 1.0)], "", []) == ()


@given(st.data())
def test_no_reward_is_lost_or_made(data: st.DataObject) -> None:
    text = data.draw(st.text(min_size=1, max_size=30))
    point = st.integers(0, len(text))
    spans = st.tuples(point, point).map(lambda pair: Span(min(pair), max(pair)))
    tokens = sorted(data.draw(st.lists(spans, min_size=1, max_size=12)))
    values = data.draw(st.lists(st.tuples(st.none() | spans, st.integers(-9, 9).map(float))))
    assert sum(place_on_tokens(values, text, tokens)) == sum(value for _, value in values)


def test_per_token_values_token_overlapping_an_error_is_wrong() -> None:
    # "it is" and the last half of "No"; end-of-text shares nothing.
    errors = [Span(5, 10), Span(13, 14)]
    assert per_token_values(errors, TOKENS, 0.0, -1.0) == (0, -1, -1, 0, -1, 0)


def test_per_token_values_empty_error_makes_no_token_wrong() -> None:
    assert per_token_values([Span(5, 5), Span(14, 14)], TOKENS, 0.0, -1.0) == (0,) * 6


def test_per_token_values_error_between_tokens_makes_none_wrong() -> None:
    assert per_token_values([Span(4, 5)], TOKENS, 0.0, -1.0) == (0,) * 6


class Counted(list[Span]):
    """Spans that count how often one is looked at."""

    num_looks = 0

    def __getitem__(self, index: SupportsIndex) -> Span:  # type: ignore[override]
        self.num_looks += 1
        return super().__getitem__(index)


def test_place_on_tokens_visits_each_token_a_few_times() -> None:
    text = "a " * 16_000
    tokens = Counted(Span(at, at + 1) for at in range(0, 32_000, 2))
    segments: list[tuple[Span | None, float]] = [
        (Span(at, at + 8), 0.5) for at in range(0, 32_000, 8)
    ]
    rewards = place_on_tokens(segments, text, tokens)
    assert rewards[:8] == (0, 0, 0, 0.5, 0, 0, 0, 0.5)
    assert tokens.num_looks <= 3 * len(tokens)


def test_segments_behind_the_last_token_look_at_each_token_a_few_times() -> None:
    # One token over everything, thousands of short ones, and segments where only the first is.
    tokens = Counted([Span(0, 32_000), *(Span(at, at + 1) for at in range(8_000))])
    segments: list[tuple[Span | None, float]] = [
        (Span(at, at + 1), 1.0) for at in range(16_000, 32_000)
    ]
    rewards = place_on_tokens(segments, "a" * 32_000, tokens)
    assert rewards[0] == 16_000
    assert tokens.num_looks <= 3 * len(tokens)


@given(st.data())
def test_rewards_land_where_looking_at_every_pair_lands_them(data: st.DataObject) -> None:
    text = data.draw(st.text(alphabet="ab \n\u2003", max_size=20))
    point = st.integers(0, len(text) + 3)
    spans = st.tuples(point, point).map(lambda pair: Span(min(pair), max(pair)))
    tokens = sorted(data.draw(st.lists(spans, min_size=1, max_size=12)), key=lambda one: one.start)
    chosen = data.draw(st.lists(spans, max_size=12))
    values: list[tuple[Span | None, float]] = [(one, 0.1 * n) for n, one in enumerate(chosen)]
    assert place_on_tokens(values, text, tokens) == laid_pair_by_pair(values, text, tokens)
    marked = tuple(-1.0 if any(shares(one, error) for error in chosen) else 0.0 for one in tokens)
    assert per_token_values(chosen, tokens, 0.0, -1.0) == marked


def laid_pair_by_pair(
    values: Sequence[tuple[Span | None, float]], text: str, tokens: Sequence[Span]
) -> tuple[float, ...]:
    rewards = [0.0] * len(tokens)
    for span, value in values:
        assert span is not None
        own = Span(span.start, span.start + len(text[span.start : span.end].rstrip()))
        places = [index for index, token in enumerate(tokens) if shares(token, own)]
        rewards[places[-1] if places else -1] += value
    return tuple(rewards)


def shares(one: Span, other: Span) -> bool:
    return max(one.start, other.start) < min(one.end, other.end)


def test_differences_land_on_their_spans_and_the_start_on_the_first_token() -> None:
    text, tokens = "a b c d e f", [Span(at, at + 1) for at in range(0, 11, 2)]
    values = [(Span(0, 3), 2.0), (Span(4, 7), 1.0), (Span(8, 11), 4.0)]
    placed = place_differences(0.5, values, text, tokens)
    assert placed == (0.5, 1.5, 0, -1.0, 0, 3.0)
    assert sum(placed) == 4.0


def test_differences_on_one_token_add_up_to_the_last_value() -> None:
    values = [(Span(0, 3), 2.0), (Span(4, 7), 1.5)]
    assert place_differences(0.5, values, "a b. c d", [Span(0, 8)]) == (1.5,)


def test_place_on_turns_that_touch_gives_each_its_own() -> None:
    tokens = [Span(0, 5), Span(5, 10), Span(10, 15), Span(15, 20)]
    turns = [Span(0, 10), Span(10, 20)]
    values = [(turns[0], 1.0), (turns[1], -2.0)]
    assert place_on_turns(values, turns, tokens, 3) == (0, 1.0, 0, -2.0)
    ended = [(Span(20, 20), 3.0)]  # at the end of the last turn
    assert place_on_turns(ended, turns, tokens, 0) == (0, 0, 0, 3.0)


SPANS = st.tuples(st.integers(0, 14), st.integers(0, 9)).map(lambda at: Span(at[0], sum(at)))


def turn_of(span: Span, turns: Sequence[Span]) -> Span:
    """Return the first turn that has a span's start, else the first that ends there."""
    for reaches in (1, 0):
        for turn in turns:
            if turn.start <= span.start <= turn.end - reaches:
                return turn
    return span


@given(st.lists(SPANS, max_size=6), st.lists(st.none() | SPANS, max_size=6))
def test_place_on_turns_uses_the_first_turn_that_a_span_begins_in(
    turns: list[Span], spans: list[Span | None]
) -> None:
    turns.sort(key=lambda turn: turn.start)  # as a request must have them; they may overlap
    found = [None if span is None else turn_of(span, turns) for span in spans]
    expected = [0.0] * len(TOKENS)
    for span in found:
        places = [
            place
            for place, (start, end) in enumerate(TOKENS)
            if span is not None
            and (
                span.start <= start <= span.end
                if start == end
                else start < span.end and span.start < end
            )
        ]
        expected[places[-1] if places else 2] += 1
    assert list(place_on_turns([(span, 1.0) for span in spans], turns, TOKENS, 2)) == expected
