import pytest

from alarm_models.study.baselines import num_words, reading_grade


def test_reading_grade_of_a_simple_sentence_is_below_one() -> None:
    # Six words of six syllables in one sentence: .39 * 6 + 11.8 - 15.59.
    assert reading_grade("The cat sat on the mat.") == pytest.approx(-1.45)


def test_reading_grade_ignores_a_silent_e() -> None:
    # "simple" has two syllables, "made" one, "a" one, "table" two: 6 over 4 words.
    assert reading_grade("A simple made table.") == pytest.approx(0.39 * 4 + 11.8 * 6 / 4 - 15.59)


def test_reading_grade_rises_with_harder_words() -> None:
    assert reading_grade("Comprehensive evaluations necessitate deliberation.") > reading_grade(
        "We test it all."
    )


@pytest.mark.parametrize("text", ["", "  ", "...", "!?"])
def test_reading_grade_without_words_is_0(text: str) -> None:
    assert reading_grade(text) == 0


def test_num_words_counts_between_white_space() -> None:
    assert num_words(" Ibsen, in 1867. ") == 3
