import pytest

from alarm_models.preprocessing.segmentation import copied_words, word_types
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


PASSAGES = "Emma was written by Jane Austen. Oliver Twist was written by Charles Dickens."


def types(completion: str) -> dict[str, int]:
    return {
        completion[start:end]: kind
        for start, end, kind in word_types(PASSAGES, completion, "support")
    }


def test_word_types_of_a_right_name_and_a_name_from_another_sentence_differ() -> None:
    assert types("Austen wrote Emma.") == {"Austen": 2, "Emma": 2}
    assert types("The author of Emma is called Jane, or Charles.") == {
        "Emma": 2, "Jane": 2, "Charles": 6,
    }  # fmt: skip


def test_word_types_of_each_sentence_have_a_supporting_sentence_of_their_own() -> None:
    assert types("Jane, Emma. Charles: Oliver.") == {
        "Jane": 2, "Emma": 2, "Charles": 2, "Oliver": 2,
    }  # fmt: skip


def test_word_types_of_a_name_count_as_one_word_in_the_choice_of_the_sentence() -> None:
    prompt = "The song was sung by Ann Lee. Bob Cole Porter wrote it."
    found = word_types(prompt, "A song by Porter, Bob Cole.", "support")
    assert [kind for *_, kind in found] == [2, 2, 6, 6, 6]


def test_word_types_of_copied_words_are_one_and_of_unknown_words_zero() -> None:
    assert types("Emma was written by a sister of the brontes of haworth") == {
        "Emma": 1, "was": 1, "written": 1, "by": 1,
    }  # fmt: skip


def test_word_types_of_unsupported_names_and_numbers_are_six_and_new_ones_seven() -> None:
    assert types("We know of Emma that Dickens read it in 1847.") == {
        "Emma": 2, "Dickens": 6, "1847": 7,
    }  # fmt: skip


def test_word_types_without_support_are_those_of_copied_words() -> None:
    text = "Emma was written by Dickens"
    assert word_types(PASSAGES, text, True) == ((0, 4, 1), (5, 8, 1), (9, 16, 1), (17, 19, 1))


def test_word_types_of_four_repeated_words_in_a_row_are_four() -> None:
    assert [kind for *_, kind in word_types("x", "a b c d a b c d a b c", "support")] == [4] * 7
    assert word_types("x", "a b c a b c", "support") == ()


@pytest.mark.parametrize(
    ("completion", "altered"),
    [
        ("Emma was written by Charlotte Bronte.", ["Charlotte", "Bronte"]),
        ("Emma was not written by Jane Austen.", ["not"]),
        ("The author of Emma is not called Jane.", ["not"]),
        ("Sanditon was written by Jane Austen.", ["Sanditon"]),
        ("Emma was written by Jane Austen.", []),
        ("Emma, a novel in three volumes, was written by Jane Austen.", []),
        ("Nobody knows.", []),
    ],
)
def test_word_types_of_words_that_replace_others_are_five(
    completion: str, altered: list[str]
) -> None:
    assert [word for word, kind in types(completion).items() if kind == 5] == altered


def test_word_types_of_a_name_copied_from_another_sentence_are_five() -> None:
    prompt = "Emma was written by Jane Austen. Sir Walter Scott praised it."
    completion = "Emma was written by Sir Walter Scott."
    found = word_types(prompt, completion, "support")
    assert [completion[start:end] for start, end, kind in found if kind == 5] == [
        "Sir", "Walter", "Scott",
    ]  # fmt: skip
