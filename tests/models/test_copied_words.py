from typing import NamedTuple

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

#: Token type 1 with ``marking="support"``.
REPEATED = 1


class Kind(NamedTuple):
    """The factors of a token type."""

    form: str
    is_name: bool
    level: int
    joined: int


def types(completion: str, prompt: str = PASSAGES, question: str = "") -> dict[str, Kind]:
    """Return the factors of the type of each word that has one; none may be repeated."""
    found = {}
    for start, end, kind in word_types(prompt, completion, "support", question):
        assert kind > REPEATED
        rest, joined = divmod(kind - 1, 3)
        rest, level = divmod(rest, 6)
        form, is_name = divmod(rest, 2)
        found[completion[start:end]] = Kind(
            ("other", "copied", "altered")[form], bool(is_name), level, joined
        )
    return found


def test_word_types_of_a_right_name_and_a_name_from_another_sentence_differ() -> None:
    found = types("The author of Emma is called Jane, or Charles.")
    assert found == {
        "Emma": Kind("other", True, 4, 0),
        "Jane": Kind("other", True, 4, 0),
        "Charles": Kind("other", True, 1, 0),
    }


def test_word_types_level_compares_a_sentence_with_the_one_that_shares_most() -> None:
    # The rest, "won", "the", "cup" and "in", is in the first sentence; the second has two of these.
    prompt = "Ann won the cup in Rome. Bob lost the cup. Cid slept."
    found = {
        name: types(f"{name} won the cup in Rome.", prompt)[name].level
        for name in ("Ann", "Bob", "Cid", "Dan")
    }
    assert found["Ann"] == 5
    assert found["Ann"] > found["Bob"] > found["Cid"] > found["Dan"] == 0


def test_word_types_level_counts_a_part_of_the_sentences_beside() -> None:
    prompt = "Ann won a cup. That was in Ulm. Bob slept. Cid sat. That was in Bonn."
    found = types("That Ann won a cup was in Ulm, or in Bonn.", prompt)
    assert found["Ulm"].level > found["Bonn"].level


def test_word_types_joined_counts_the_neighbors_that_the_prompt_has_too() -> None:
    found = types("It was written by Charles Austen, they say.")
    assert [found[word].joined for word in ("was", "written", "by", "Charles", "Austen")] == [
        1, 2, 2, 1, 1,
    ]  # fmt: skip


def test_word_types_of_each_sentence_have_a_supporting_sentence_of_their_own() -> None:
    found = types("It is by Jane, on Emma. This is by Charles, on Oliver.")
    assert {one.level for word, one in found.items() if one.is_name} == {5}


def test_word_types_of_a_name_count_as_one_word_in_the_choice_of_the_sentence() -> None:
    prompt = "The song was sung by Ann Lee. Bob Cole Porter wrote it."
    found = types("A song by Porter, Bob Cole.", prompt)
    assert found["song"].level > found["Porter"].level


def test_word_types_of_copied_words_and_of_unknown_words() -> None:
    found = types("Emma was written by a sister of the brontes of haworth")
    assert list(found) == ["Emma", "was", "written", "by"]
    assert {one.form for one in found.values()} == {"copied"}


def test_word_types_of_new_names_and_numbers_have_level_zero() -> None:
    found = types("We know of Emma that Dickens read it in 1847.")
    assert found["1847"] == Kind("other", True, 0, 0)
    assert found["Dickens"].level == 1


def test_word_types_of_a_word_in_very_many_sentences_agree_with_all() -> None:
    prompt = " ".join(f"Item{at} is red." for at in range(70))
    assert types("Nobody said is.", prompt)["is"].level == 5


def test_word_types_without_support_are_those_of_copied_words() -> None:
    text = "Emma was written by Dickens"
    assert word_types(PASSAGES, text, True) == ((0, 4, 1), (5, 8, 1), (9, 16, 1), (17, 19, 1))


def test_word_types_of_four_repeated_words_in_a_row_are_one() -> None:
    found = word_types("x", "a b c d a b c d a b c", "support")
    assert [kind for *_, kind in found] == [REPEATED] * 7
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
def test_word_types_of_words_that_replace_others_are_altered(
    completion: str, altered: list[str]
) -> None:
    found = types(completion)
    assert [word for word, one in found.items() if one.form == "altered"] == altered


def test_word_types_of_a_name_copied_from_another_sentence_are_altered() -> None:
    prompt = "Emma was written by Jane Austen. Sir Walter Scott praised it."
    found = types("Emma was written by Sir Walter Scott.", prompt)
    assert [word for word, one in found.items() if one.form == "altered"] == [
        "Sir", "Walter", "Scott",
    ]  # fmt: skip


QUESTION = "Who wrote Emma?"
ASKED = f"question: {QUESTION} context: {PASSAGES}"


@pytest.mark.parametrize(
    ("prompt", "question", "levels"),
    [
        # The rest of the sentence that has the name is what the question has too: "Emma".
        (ASKED, QUESTION, (5, 1)),
        (PASSAGES, QUESTION, (5, 1)),
        (ASKED, f" {QUESTION}\n", (5, 1)),
        (f"{QUESTION} {PASSAGES} {QUESTION}", QUESTION, (5, 1)),
        # A sentence with more than the question still supports words.
        (f"question: who wrote Emma context: {PASSAGES}", "who wrote Emma", (5, 1)),
        (PASSAGES, "Emma", (5, 1)),
        (ASKED, "", (1, 1)),
        (ASKED, ASKED, (1, 1)),
        (ASKED, f"{ASKED} Who?", (1, 1)),
        (ASKED, "Who is it?", (1, 1)),
    ],
)
def test_word_types_level_of_a_bare_name_depends_on_the_question(
    prompt: str, question: str, levels: tuple[int, int]
) -> None:
    right = types("Jane Austen", prompt, question)
    wrong = types("Charles Dickens", prompt, question)
    assert (right["Austen"].level, wrong["Dickens"].level) == levels


def test_word_types_of_a_name_that_only_the_question_shares_something_with() -> None:
    question = "Did Charles Dickens write Emma?"
    prompt = f"question: {question} context: {PASSAGES}"
    # The second sentence shares the name alone, which does not support itself.
    assert types("Charles Dickens.", prompt, question)["Dickens"].level == 1
    assert types("Jane Austen.", prompt, question)["Austen"].level > 1


@pytest.mark.parametrize("passages", ["Ann sang. Bob danced.", "The fly sat. Bob danced."])
def test_word_types_of_words_that_only_the_question_has_are_not_supported_by_it(
    passages: str,
) -> None:
    question = "Did Zed the miller fly?"
    found = types("That miller Zed.", f"question: {question} context: {passages}", question)
    assert (found["miller"].level, found["Zed"].level) == (1, 1)


def test_word_types_of_sentences_over_eight_words_do_not_depend_on_the_question() -> None:
    eight = "They say it is by Charles Dickens, too."
    assert types(eight, ASKED, QUESTION) != types(eight, ASKED)
    nine = "They often say it is by Charles Dickens, too."
    assert types(nine, ASKED, QUESTION) == types(nine, ASKED)
