"""Wrong answers that `mini` is trained on and measured by, made from a question's own texts."""

from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import pytest

PASSAGE = "Emma was written by Jane Austen in 1815. Charles Dickens wrote Oliver Twist in 1837."
RIGHT = "Emma was written by Jane Austen in 1815. It was first published in London in 1816."


@pytest.fixture
def wrong(training: Callable[[str], ModuleType]) -> ModuleType:
    return training("wrong_answers")


def question(wrong: ModuleType, text: str, context: str, answer: str) -> Any:
    prompt = f"question: {text} context: {context}"
    return wrong.Question(text, prompt, (answer,) * 4, (), (), (answer, answer))


@pytest.fixture
def asked(wrong: ModuleType) -> Any:
    return question(wrong, "Who wrote Emma?", PASSAGE, RIGHT)


@pytest.fixture
def other(wrong: ModuleType) -> Any:
    text = "Mount Everest is in Nepal."
    return question(wrong, "Where is Mount Everest?", text, text)


def test_wrong_answers_of_every_kind_are_made_and_differ_from_the_right_one(
    wrong: ModuleType, asked: Any, other: Any
) -> None:
    kinds = (*wrong.KINDS, *wrong.HELD_OUT_KINDS)
    made = wrong.wrong_answers(RIGHT, wrong.Passages(asked), other, Random(0), kinds)
    assert list(made) == list(kinds)
    assert RIGHT not in made.values()
    assert set(kinds) >= wrong.WITHOUT_ANSWER


def test_wrong_answers_change_what_their_kind_says(
    wrong: ModuleType, asked: Any, other: Any
) -> None:
    right = "Emma was written by Jane Austen."
    own = wrong.Passages(asked)

    def made(kind: str, text: str = right) -> str:
        return str(wrong.wrong_answers(text, own, other, Random(0), [kind])[kind])

    assert made("empty") == ""
    assert made("negated") == "Emma was not written by Jane Austen."
    assert made("exchanged names") == "Jane Austen was written by Emma."
    assert made("exchanged numbers", "3 of 5, then 3.") == "5 of 3, then 5."
    assert made("denied") in (
        "Emma was never written by Jane Austen.",
        "Emma wasn't written by Jane Austen.",
    )
    assert made("first half") == "Emma was written"
    assert made("opposite", "It was first.") == "It was last."
    foreign = made("foreign name")
    assert "Mount Everest" in foreign or "Nepal" in foreign
    assert any(name in made("name from passages") for name in ("Charles Dickens", "Oliver Twist"))


def test_names_end_with_their_sentence_and_are_no_common_words_that_begin_one(
    wrong: ModuleType,
) -> None:
    context = "The production of Emma began in New Jersey. His production won. Emma Woodhouse too."
    own = wrong.Passages(question(wrong, "Who?", context, RIGHT))
    assert own.names == ["Emma", "New Jersey", "Emma Woodhouse"]
    assert own.names_of("Production moved to New York. Emma did not.") == ["New York", "Emma"]


def test_wrong_answers_that_a_text_does_not_allow_are_left_out(
    wrong: ModuleType, asked: Any, other: Any
) -> None:
    kinds = (
        "other numbers",
        "exchanged names",
        "exchanged numbers",
        "opposite",
        "cut off",
        "denied",
    )
    assert wrong.wrong_answers("Nobody.", wrong.Passages(asked), other, Random(0), kinds) == {}


def test_short_answers_are_first_sentences_and_bare_names(wrong: ModuleType, asked: Any) -> None:
    assert wrong.short_answers(asked, wrong.Passages(asked)) == [
        "Emma was written by Jane Austen in 1815.",
        "Jane Austen",
        "Jane Austen.",
    ]


def test_supported_prompt_keeps_the_sentence_that_an_answer_needs(
    wrong: ModuleType, asked: Any
) -> None:
    prompt = wrong.supported_prompt(wrong.Passages(asked), "Jane Austen, 1815", Random(1))
    assert prompt.startswith("question: Who wrote Emma? context: ")
    assert "Emma was written by Jane Austen in 1815." in prompt


def test_true_denial_negates_a_sentence_with_a_name_that_does_not_belong_there(
    wrong: ModuleType, asked: Any, other: Any
) -> None:
    right = "Emma was written by Jane Austen."
    found = {wrong.true_denial(right, wrong.Passages(asked), other, Random(n)) for n in range(40)}
    assert f"No, {right}" in found
    denials = found - {f"No, {right}"}
    assert f"Emma was not written by Charles Dickens. {right}" in denials
    for text in denials:
        denied, answer = wrong.texts_of_sentences(text)
        assert answer == right
        assert " not " in denied
        assert "Emma" not in denied or "Jane Austen" not in denied


def test_true_denial_without_names_or_verbs_is_none(
    wrong: ModuleType, asked: Any, other: Any
) -> None:
    own = wrong.Passages(asked)
    for text in ("", "it was red.", "Jane Austen."):
        found = {wrong.true_denial(text, own, other, Random(n)) for n in range(20)}
        assert found <= {None, f"No, {text}"}


def test_changed_words_are_those_that_the_wrong_answer_lacks_at_their_place(
    wrong: ModuleType,
) -> None:
    assert wrong.changed_words("Ann easily beat Bob.", "Bob easily beat Ann.") == {"ann", "bob"}
    assert wrong.changed_words("Ann beat Bob.", "Ann beat Cid.") == {"bob"}
    assert wrong.changed_words("Ann won.", "Ann did not win.") == {"won"}
    assert wrong.changed_words("Ann won.", "Yes, Ann won.") == set()
