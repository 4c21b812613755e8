from alarm_models.preprocessing.segmentation import copied_words
from alarm_models.types import Span


def copied(prompt: str, completion: str) -> list[str]:
    return [completion[span.start : span.end] for span in copied_words(prompt, completion)]


def test_three_words_in_a_row_are_copied() -> None:
    assert copied("It was first published in 1815.", "Emma was first published.") == [
        "was",
        "first",
        "published",
    ]


def test_two_words_in_a_row_are_not() -> None:
    assert copied("It was first published in 1815.", "Emma was first.") == []


def test_case_and_punctuation_do_not_count() -> None:
    assert copied("Born in London, England", "BORN IN (London)") == ["BORN", "IN", "London"]


def test_spans_count_code_points_of_the_completion() -> None:
    assert copied_words("a b c", "🙂 a b c")[0] == Span(2, 3)


def test_an_empty_side_copies_nothing() -> None:
    assert copied_words("", "a b c") == copied_words("a b c", "") == ()
