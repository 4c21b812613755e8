"""Answers to questions whose answers are spans of paragraphs, which `mini` is trained on."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

FIRST = "Emma is a novel. It was written by Jane Austen in 1815. It is set in Highbury."
SECOND = "Oliver Twist was written by Charles Dickens."


@pytest.fixture
def spans(training: Callable[[str], ModuleType]) -> ModuleType:
    return training("span_questions")


def row(text: str, paragraph: str, *answers: str) -> dict[str, Any]:
    found = [{"text": one, "answer_start": paragraph.index(one)} for one in answers]
    return {"question": text, "answers": found}


@pytest.fixture
def asked(spans: ModuleType, tmp_path: Path) -> Any:
    """The questions of an article with two paragraphs; the other file has no articles."""
    paragraphs = [
        {
            "context": FIRST,
            "qas": [
                row("Who wrote Emma?", FIRST, "Jane Austen in 1815", "Jane Austen"),
                row("When was Emma written?", FIRST, "1815"),
                row("Where is Emma set?", FIRST, "Highbury"),
                row("What is in the text?", FIRST, FIRST),
                row("Who sings?", FIRST),
            ],
        },
        {"context": SECOND, "qas": [row("Who wrote Twist?", SECOND, "Charles Dickens")]},
    ]
    article = {"title": "English_novels%2C_old", "paragraphs": paragraphs}
    (tmp_path / "new_wiki_v1.0.json").write_text(json.dumps({"data": [article]}))
    (tmp_path / "xquad.en.json").write_text(json.dumps({"data": []}))
    return spans.load_span_questions(tmp_path)


def test_the_shortest_answer_counts_and_questions_without_a_short_one_are_left_out(
    asked: Any,
) -> None:
    assert [one.answer for one in asked] == ["Jane Austen", "1815", "Highbury", "Charles Dickens"]
    assert asked[0].title == "English novels, old"


def test_rivals_are_answers_to_other_questions_of_the_article(asked: Any) -> None:
    assert asked[0].rivals == ["Highbury", "Charles Dickens"]  # 1815 is in one of its answers


def test_right_answers_are_the_span_a_statement_and_sentences(asked: Any) -> None:
    sentence = "It was written by Jane Austen in 1815."
    assert asked[0].short_answers() == ["Jane Austen", "Jane Austen.", "Jane Austen wrote Emma."]
    assert asked[0].long_answers() == [sentence, f"{sentence} It is set in Highbury."]


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("Who sailed first?", "Bo", "Bo sailed first."),
        ("Who was the king?", "Bo", "The king was Bo."),
        ("Who did he meet?", "Bo", None),
        ("Where was the ship built ?", "Ulm", "The ship was built in Ulm."),
        ("When was it sold to Bo?", "in May", "It was sold to Bo in May."),
        ("In what year was it opened?", "1815", "It was opened in 1815."),
        ("how many cats are in Ulm", "two", "Two cats are in Ulm."),
        ("Which old ship is the largest?", "Ann", "Ann is the largest."),
        ("Why is it so?", "rain", None),
    ],
)
def test_statements_of_questions_and_answers(
    spans: ModuleType, question: str, answer: str, statement: str | None
) -> None:
    one = spans.SpanQuestion(question, "", answer, spans.Span(0, len(answer)), [], [])
    assert one.short_answers() == [answer, f"{answer}.", *([statement] if statement else [])]


def test_with_rival_replaces_the_answer_by_one_of_like_form(asked: Any) -> None:
    made = asked[0].with_rival("It was JANE AUSTEN, in 1815.", Random(0))
    assert made in ("It was Highbury, in 1815.", "It was Charles Dickens, in 1815.")
    assert asked[0].with_rival("Nobody knows.", Random(0)) is None
    assert asked[1].with_rival("In 1815.", Random(0)) is None  # no other number
    assert asked[0].with_rival("Jane Austens", Random(0)) is None


def test_prompts_have_the_own_paragraph_and_the_format_of_the_recipe(asked: Any) -> None:
    made = {asked[0].with_prompt(Random(seed)).prompt for seed in range(40)}
    beginning = "question: Who wrote Emma? context: wikipage: English novels, old text: "
    assert all(one.startswith(beginning) and FIRST in one for one in made)
    assert {SECOND in one for one in made} == {True, False}
    assert {one.index(FIRST) < one.index(SECOND) for one in made if SECOND in one} == {True, False}
