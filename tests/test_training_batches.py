"""The answers that a training step of `mini` compares."""

from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import pytest

QUESTION = "Who wrote Emma?"
PASSAGE = "Emma was written by Jane Austen in 1815. Charles Dickens wrote Oliver Twist in 1837."
RIGHT = "Emma was first written by Jane Austen in 1815."
PROMPT = f"question: {QUESTION} context: {PASSAGE}"
ANSWERS = ("Emma was written in Ulm. It rains.", "By Jane Austen.", "Dickens did.", "Nobody knows.")


@pytest.fixture
def batches(training: Callable[[str], ModuleType]) -> ModuleType:
    return training("batches")


@pytest.fixture
def asked(batches: ModuleType, training: Callable[[str], ModuleType]) -> Any:
    """People prefer the second answer to the third, and marked the first one's first sentence."""
    data = training("data")
    errors = (data.Error(data.Span(0, 24), "Wrong-Grounding"),)
    pairs = (data.Pair(1, 2),)
    return batches.Question(QUESTION, PROMPT, ANSWERS, pairs, errors, (RIGHT, f"{RIGHT} It rains."))


@pytest.fixture
def other(batches: ModuleType) -> Any:
    text = "Mount Everest is in Nepal."
    prompt = f"question: Where is Mount Everest? context: {text}"
    return batches.Question("Where is Mount Everest?", prompt, (text,) * 4, (), (), (text, text))


@pytest.fixture
def spans(batches: ModuleType, training: Callable[[str], ModuleType]) -> Any:
    at = PASSAGE.index("Jane Austen")
    span = training("data").Span(at, at + len("Jane Austen"))
    return batches.SpanQuestion(QUESTION, "Novels", PASSAGE, span, [], ["Oliver Twist"])


def compared(batch: Any) -> set[tuple[str, str, str]]:
    """Kind, better and worse text of each pair."""
    texts = [one.completion for one in batch.samples]
    return {(kind, texts[a], texts[b]) for kind, pairs in batch.pairs.items() for a, b in pairs}


def composed(batches: ModuleType, asked: Any, other: Any, seed: int, *, is_second: bool) -> Any:
    batch, own = batches.Batch(), batches.Passages(asked)
    batches.add_question(batch, asked, other, own, Random(seed), is_second=is_second)
    return batch


def test_preferences_are_peoples_and_favor_what_they_corrected_or_did_not_mark(
    batches: ModuleType, asked: Any, other: Any
) -> None:
    batch = composed(batches, asked, other, 0, is_second=False)
    texts = [one.completion for one in batch.samples]
    preferred = [(texts[better], texts[worse]) for better, worse in batch.preferences]
    assert preferred == [
        (ANSWERS[1], ANSWERS[2]),
        (f"{RIGHT} It rains.", ANSWERS[0]),
        ("It rains.", ANSWERS[0]),
    ]


def test_lengths_of_sampled_answers_count_in_the_first_phase_only(
    batches: ModuleType, asked: Any, other: Any
) -> None:
    def measured(*, is_second: bool) -> list[str]:
        batch = composed(batches, asked, other, 0, is_second=is_second)
        return [batch.samples[index].completion for index in batch.measured]

    people = [f"{RIGHT} It rains.", RIGHT]
    assert measured(is_second=False) == [*ANSWERS, *people]
    assert measured(is_second=True) == people


def test_every_subtle_fault_of_an_answer_is_shown_in_the_second_phase(
    batches: ModuleType, asked: Any, other: Any
) -> None:
    for seed in range(10):
        pairs = compared(composed(batches, asked, other, seed, is_second=True))
        kinds = {kind for kind, better, _ in pairs if better == RIGHT}
        assert kinds >= {*batches.SUBTLE, "empty", "refusal", "question again", "off topic"}


def test_each_aspect_has_the_first_answer_and_one_with_a_fault(
    batches: ModuleType, asked: Any, other: Any
) -> None:
    batch = composed(batches, asked, other, 0, is_second=True)
    first, fault = batch.marked["factuality"]
    assert (first.sample.completion, first.wrong) == (ANSWERS[0], [(0, 24)])
    assert fault.wrong
    assert fault.sample in batch.samples


def test_wrong_versions_and_answers_to_other_questions_are_compared_with_right_answers(
    batches: ModuleType, asked: Any, other: Any, spans: Any
) -> None:
    pairs = set()
    for seed in range(10):
        pairs |= compared(composed(batches, asked, other, seed, is_second=True))
        batch = batches.Batch()
        batches.add_span_question(batch, spans, other, Random(seed), is_second=True)
        pairs |= compared(batch)
    exchanged = "Jane Austen was first written by Emma in 1815."
    assert ("exchanged names", RIGHT, exchanged) in pairs
    assert ("other answer", "Jane Austen.", "Oliver Twist.") in pairs
    assert ("name from passages", "Jane Austen", "Charles Dickens") in pairs
    assert not any(better == worse for _, better, worse in pairs)


def test_answers_to_span_questions_are_compared_with_wrong_ones_alone(
    batches: ModuleType, other: Any, spans: Any
) -> None:
    right = {*spans.short_answers(), *spans.long_answers()}
    for seed in range(20):
        batch = batches.Batch()
        batches.add_span_question(batch, spans, other, Random(seed), is_second=seed % 2 == 0)
        pairs = compared(batch)
        assert pairs
        assert {better for _, better, _ in pairs} <= right
        assert right.isdisjoint(worse for *_, worse in pairs)
        assert batch.preferences == batch.measured == []
        assert batch.marked == {"factuality": [], "relevance": []}
