from alarm_models.preprocessing.segmentation import copied_words
from alarm_models.types import Span


def copied(prompt: str, completion: str) -> list[str]:
    return [completion[span.start : span.end] for span in copied_words(prompt, completion)]


def test_copied_words_of_three_consecutive_words_are_found() -> None:
    assert copied("It was first published in 1815.", "Emma was first published.") == [
        "was",
        "first",
        "published",
    ]


def test_copied_words_of_two_consecutive_words_are_not_found() -> None:
    assert copied("It was first published in 1815.", "Emma was first.") == []


def test_copied_words_ignore_case_and_punctuation() -> None:
    assert copied("Born in London, England", "BORN IN (London)") == ["BORN", "IN", "London"]


def test_copied_words_spans_count_code_points_of_the_completion() -> None:
    assert copied_words("a b c", "🙂 a b c")[0] == Span(2, 3)


def test_copied_words_with_empty_text_finds_none() -> None:
    assert copied_words("", "a b c") == copied_words("a b c", "") == ()
