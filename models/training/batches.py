"""Composes the answers of a training step of `mini`, and which of them are better than which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from alarm_models.types import Sample
from data import Question
from features import ASPECTS, Marked, marked_by_fault, marked_by_people, without_errors
from span_questions import SpanQuestion
from wrong_answers import (
    KINDS,
    SUBTLE,
    WITHOUT_ANSWER,
    Passages,
    short_answers,
    supported_prompt,
    true_denial,
    wrong_answers,
)

__all__ = ["Batch", "add_question", "add_span_question"]

#: Kinds that are shown for each right answer that allows them, as they are hardest.
_HARDEST = ("name from passages", "cut off")

#: Kinds of which two are shown for each right answer.
_HARD = ("exchanged names", "other numbers", "opposite", "negated", "repetitive")


@dataclass(slots=True)
class Batch:
    """The samples of a step, pairs of their indices (better, worse), and wrong spans."""

    samples: list[Sample] = field(default_factory=list)
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    preferences: list[tuple[int, int]] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    marked: dict[str, list[Marked]] = field(
        default_factory=lambda: {aspect: [] for aspect in ASPECTS}
    )

    def add(self, prompt: str, completion: str) -> int:
        """Add a sample; return its index."""
        self.samples.append(Sample(prompt, completion))
        return len(self.samples) - 1


def add_question(
    batch: Batch,
    question: Question,
    other: Question,
    own: Passages,
    choose: Random,
    *,
    is_second: bool,
) -> None:
    """Add a question's sampled answers, and right answers with wrong versions of each.

    ``other`` is a question whose answers are off topic. In the second phase, ``is_second``, more
    faults are subtle, and the lengths of sampled answers do not count.
    """
    answers = [batch.add(question.prompt, answer) for answer in question.answers]
    batch.preferences += [(answers[one.better], answers[one.worse]) for one in question.pairs]
    human, corrected = question.references
    right = [
        (batch.add(question.prompt, text), question.prompt, text)
        for text in (corrected, human)
        if text.strip()
    ]
    batch.measured += [*([] if is_second else answers), *(index for index, *_ in right)]
    if corrected.strip() not in ("", question.answers[0].strip()):
        batch.preferences.append((right[0][0], answers[0]))
    if rest := without_errors(question):
        batch.preferences.append((batch.add(question.prompt, rest), answers[0]))
    denial = true_denial(choose.choice((human, corrected)), own, other, choose)
    if denial is not None and choose.random() < 0.5:
        right.append((batch.add(question.prompt, denial), question.prompt, denial))
    for text in _some(short_answers(question, own), 4 - len(right), choose):
        prompt = question.prompt
        if choose.random() < 0.6:
            prompt = supported_prompt(own, f"{human} {text}", choose)
        right.append((batch.add(prompt, text), prompt, text))
    sampled = choose.randrange(len(answers))
    right.append((answers[sampled], question.prompt, question.answers[sampled]))
    without = wrong_answers(human, own, other, choose, sorted(WITHOUT_ANSWER & set(KINDS)))
    for kind, text in without.items():
        index = batch.add(question.prompt, text)
        batch.pairs[kind] += [(better, index) for better, *_ in right]
    made = [_add_faults(batch, one, own, other, choose, is_second=is_second) for one in right[:-1]]
    for aspect, marked in marked_by_people(question).items():
        by_fault = [one[aspect] for one in made if aspect in one]
        batch.marked[aspect] += [marked, *choose.sample(by_fault, min(1, len(by_fault)))]


def add_span_question(
    batch: Batch, question: SpanQuestion, other: Question, choose: Random, *, is_second: bool
) -> None:
    """Add right answers to a question without human feedback, and wrong versions of each.

    ``other`` and ``is_second`` are as in `add_question`. Lengths do not count, and segments are not
    classified.
    """
    asked = question.with_prompt(choose)
    own = Passages(asked)
    texts = _some(question.short_answers(), 2, choose)
    if choose.random() < 0.3:
        texts[-1] = choose.choice(question.long_answers())
    right = [(batch.add(asked.prompt, text), asked.prompt, text) for text in texts]
    kinds = [choose.choice(sorted(WITHOUT_ANSWER & set(KINDS)))]
    for kind, text in wrong_answers(texts[0], own, other, choose, kinds).items():
        index = batch.add(asked.prompt, text)
        batch.pairs[kind] += [(better, index) for better, *_ in right]
    for better, prompt, text in right:
        if rival := question.with_rival(text, choose):
            batch.pairs["other answer"].append((better, batch.add(prompt, rival)))
        _add_faults(batch, (better, prompt, text), own, other, choose, is_second=is_second)


def _add_faults(
    batch: Batch,
    right: tuple[int, str, str],
    own: Passages,
    other: Question,
    choose: Random,
    *,
    is_second: bool,
) -> dict[str, Marked]:
    """Add wrong versions of a right answer; return one of them for each aspect that has one."""
    better, prompt, text = right
    wrong = wrong_answers(
        text, own, other, choose, [kind for kind in KINDS if kind not in WITHOUT_ANSWER]
    )
    if is_second:
        kinds = [kind for kind in SUBTLE if kind in wrong]
        kinds += _some([kind for kind in wrong if kind not in SUBTLE], 2, choose)
    else:
        kinds = [kind for kind in _HARDEST if kind in wrong]
        kinds += _some([kind for kind in _HARD if kind in wrong], 2, choose)
        kinds += _some([kind for kind in wrong if kind not in (*_HARDEST, *_HARD)], 1, choose)
    marked: dict[str, Marked] = {}
    for kind in kinds:
        batch.pairs[kind].append((better, batch.add(prompt, wrong[kind])))
        marked |= marked_by_fault(Sample(prompt, wrong[kind]), text, kind)
    return marked


def _some(items: Sequence[str], number: int, choose: Random) -> list[str]:
    return choose.sample(list(items), min(number, len(items)))
