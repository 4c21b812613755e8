"""Questions with human feedback, and their split into training and held-out questions."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from alarm_models.types import Span

__all__ = [
    "Error",
    "Pair",
    "Question",
    "fold_of",
    "is_error",
    "is_held_out",
    "load_questions",
    "sorted_words",
]

NUM_FOLDS = 20
#: One question in five is held out.
HELD_OUT_FOLDS = range(4)

ASPECT_ERRORS = {
    "factuality": frozenset({"Wrong-Grounding", "Unverifiable"}),
    "relevance": frozenset({"Irrelevant", "Redundant", "Incoherent"}),
}
_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@dataclass(frozen=True, slots=True)
class Error:
    """A span of the first answer that a human marked."""

    span: Span
    kind: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to a question, by index, of which people preferred one."""

    better: int
    worse: int


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its prompt, four answers and the human feedback on them.

    ``references`` are a human's own answer and a human's correction of the first answer.
    """

    text: str
    prompt: str
    answers: tuple[str, ...]
    pairs: tuple[Pair, ...]
    errors: tuple[Error, ...]
    references: tuple[str, ...]


def load_questions(folder: Path) -> tuple[Question, ...]:
    """Read ``qa_feedback.json`` and the prompts of the same questions in ``qa_prompts.json``."""
    rows = json.loads((folder / "qa_feedback.json").read_text(encoding="utf-8"))
    prompts = json.loads((folder / "qa_prompts.json").read_text(encoding="utf-8"))
    prompt_of = {row["question"]: row["text"] for row in prompts}
    return tuple(
        Question(
            text=row["question"],
            prompt=prompt_of[row["question"]],
            answers=tuple(row[f"prediction {index}"] for index in range(1, 5)),
            pairs=_pairs(row["preference"]),
            errors=tuple(
                Error(Span(error["start"], error["end"]), error["error type"])
                for error in row["feedback"]["errors"]
            ),
            references=(row["gold"], row["feedback"]["corrected-prediction"]),
        )
        for row in rows
    )


def sorted_words(question: str) -> str:
    """Return a question's words in lower case and alphabetical order."""
    return " ".join(sorted(re.findall(r"\w+", question.lower())))


def fold_of(question: str) -> int:
    """Return the fold of a question, 0 to 19, from its words in any order and case."""
    words = sorted_words(question)
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % NUM_FOLDS


def is_held_out(question: str) -> bool:
    """Whether a question is held out from training."""
    return fold_of(question) in HELD_OUT_FOLDS


def is_error(segment: Span, errors: tuple[Error, ...], aspect: str) -> bool:
    """Whether an error of the aspect overlaps a segment by a character or more."""
    return any(
        error.kind in ASPECT_ERRORS[aspect]
        and max(segment.start, error.span.start) < min(segment.end, error.span.end)
        for error in errors
    )


def _pairs(preference: list[int]) -> tuple[Pair, ...]:
    return tuple(
        Pair(first, second) if choice == 1 else Pair(second, first)
        for (first, second), choice in zip(_PAIRS, preference, strict=True)
        if choice in (1, 2)
    )
