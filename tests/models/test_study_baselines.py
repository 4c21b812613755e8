import pytest

from alarm_models.study.baselines import num_words, reading_grade


def test_the_cat_reads_below_grade_one() -> None:
    # Six words of six syllables in one sentence: .39 * 6 + 11.8 - 15.59.
    assert reading_grade("The cat sat on the mat.") == pytest.approx(-1.45)


def test_syllables_are_counted_with_silent_ends() -> None:
    # "simple" has two syllables, "made" one, "a" one, "table" two: 6 over 4 words.
    assert reading_grade("A simple made table.") == pytest.approx(0.39 * 4 + 11.8 * 6 / 4 - 15.59)


def test_harder_words_have_a_higher_grade() -> None:
    assert reading_grade("Comprehensive evaluations necessitate deliberation.") > reading_grade(
        "We test it all."
    )


@pytest.mark.parametrize("text", ["", "  ", "...", "!?"])
def test_a_text_without_words_has_grade_0(text: str) -> None:
    assert reading_grade(text) == 0


def test_words_are_what_white_space_parts() -> None:
    assert num_words(" Ibsen, in 1867. ") == 3
