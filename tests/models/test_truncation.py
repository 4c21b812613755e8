import pytest

from alarm_models.errors import SampleError
from alarm_models.preprocessing.truncation import TokenIds, Truncation, fit
from alarm_models.types import Span

#: <s> h: p p p p a: c c </s>, with 4 tokens of the prompt.
TOKENS = TokenIds((0, 10, 1, 2, 3, 4, 20, 30, 31, 9), Span(2, 6), num_prefix=1, num_suffix=1)


@pytest.mark.parametrize("truncation", list(Truncation))
def test_truncation_of_a_sample_that_fits_changes_nothing(truncation: Truncation) -> None:
    assert fit(TOKENS, 10, truncation) == (TOKENS, False)


def test_truncation_prompt_drops_the_prompts_start() -> None:
    kept, truncated = fit(TOKENS, 8, Truncation.PROMPT)
    assert kept.ids == (0, 10, 3, 4, 20, 30, 31, 9)
    assert kept.prompt == Span(2, 4)
    assert truncated


def test_truncation_prompt_may_drop_the_whole_prompt() -> None:
    kept, _ = fit(TOKENS, 6, Truncation.PROMPT)
    assert kept.ids == (0, 10, 20, 30, 31, 9)


def test_truncation_prompt_never_drops_the_completion() -> None:
    with pytest.raises(SampleError, match="without any prompt the sample has 6 tokens") as caught:
        fit(TOKENS, 5, Truncation.PROMPT)
    assert caught.value.code == "too_long"


def test_truncation_right_keeps_the_start_and_the_closing_token() -> None:
    kept, truncated = fit(TOKENS, 7, Truncation.RIGHT)
    assert kept.ids == (0, 10, 1, 2, 3, 4, 9)
    assert truncated


def test_truncation_error_fails_the_sample_with_both_numbers() -> None:
    with pytest.raises(SampleError, match="has 10 tokens, the model takes 9"):
        fit(TOKENS, 9, Truncation.ERROR)


def test_fit_with_prompt_twice_truncates_both_equally() -> None:
    # p p p p r: c p p p p c </s>
    tokens = TokenIds(
        (1, 2, 3, 4, 20, 30, 1, 2, 3, 4, 31, 9), Span(6, 10), 0, 1, copies=(Span(0, 4),)
    )
    kept, truncated = fit(tokens, 9, Truncation.PROMPT)
    assert truncated
    assert kept.ids == (3, 4, 20, 30, 3, 4, 31, 9)
    assert (kept.copies, kept.prompt) == ((Span(0, 2),), Span(4, 6))
    with pytest.raises(SampleError, match="without any prompt the sample has 4 tokens"):
        fit(tokens, 3, Truncation.PROMPT)
