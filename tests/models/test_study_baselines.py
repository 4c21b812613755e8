import pytest

from alarm_models.reward_models.readability import Readability
from alarm_models.study.baselines import num_words, reading_grade
from alarm_models.types import Sample


def test_reading_grade_of_one_short_sentence_is_below_one() -> None:
    # Six words of six syllables in one sentence: .39 * 6 + 11.8 - 15.59 = -1.45, rounded.
    assert reading_grade("The cat sat on the mat.") == -1.5


def test_reading_grade_is_higher_for_longer_words() -> None:
    assert reading_grade("Comprehensive evaluations necessitate deliberation.") > reading_grade(
        "We test it all."
    )


@pytest.mark.parametrize(
    "text", ["", "A simple made table.", "Ibsen wrote it in 1867. It was staged in 1876, in Oslo."]
)
def test_reading_grade_equals_the_score_of_kind_readability(text: str) -> None:
    assert reading_grade(text) == Readability()(Sample("?", text)).value


def test_num_words_counts_between_white_space() -> None:
    assert num_words(" Ibsen, in 1867. ") == 3
