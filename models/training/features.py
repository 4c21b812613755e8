"""Prepares training data with the server's models, so that training and serving agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.segmentation import sentences
from alarm_models.recipe.loader import load_recipe
from alarm_models.reward_models.base import RewardModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample, Span
from data import ASPECT_ERRORS, Question
from wrong_answers import texts_of_sentences

__all__ = [
    "ASPECTS",
    "Example",
    "Marked",
    "examples",
    "labels_of",
    "load_models",
    "marked_by_fault",
    "marked_by_people",
    "prepared",
    "without_errors",
]

ASPECTS = {"factuality": "factuality_rm", "relevance": "relevance_rm"}

#: Kinds of wrong answers whose changed sentences are wrong for an aspect.
FAULTS = {
    "factuality": frozenset(
        {
            "name from passages",
            "foreign name",
            "exchanged names",
            "other numbers",
            "opposite",
            "negated",
        }
    ),
    "relevance": frozenset({"off-topic sentence", "repetitive", "filler"}),
}


@dataclass(frozen=True, slots=True)
class Marked:
    """A sample, and the spans of its completion that are wrong."""

    sample: Sample
    wrong: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Example:
    """The segments of a question's first answer, by aspect, with a label for each segment.

    A label is 1 for a segment without an error and 0 for one with an error.
    """

    aspects: Mapping[str, tuple[ModelInput, list[int]]]


def load_models(settings: Sequence[str] = ()) -> dict[str, RewardModel]:
    """Load the recipe's models on the CPU."""
    recipe = load_recipe("mini", settings)
    loader = Loader(torch.device("cpu"))
    return {name: loader.load(spec, recipe.field_patterns) for name, spec in recipe.models.items()}


def prepared(model: RewardModel, samples: Sequence[Sample]) -> list[ModelInput]:
    """Prepare samples as the server does; raise the error of one that cannot be."""
    found = model.prepare(samples)
    for one in found:
        if isinstance(one, Exception):
            raise one
    return [one for one in found if isinstance(one, ModelInput)]


def marked_by_people(question: Question) -> dict[str, Marked]:
    """Return the first answer with the errors that people marked."""
    sample = Sample(question.prompt, question.answers[0])
    return {
        aspect: Marked(sample, [one.span for one in question.errors if one.kind in kinds])
        for aspect, kinds in ASPECT_ERRORS.items()
    }


def without_errors(question: Question) -> str:
    """Return the first answer without the sentences in which people marked an error.

    Empty if they marked none, or all.
    """
    text = question.answers[0]
    spans = sentences(text)
    kept = [
        one
        for one in spans
        if not any(max(one.start, e.span.start) < min(one.end, e.span.end) for e in question.errors)
    ]
    if len(kept) == len(spans):
        return ""
    return " ".join(text[one.start : one.end] for one in kept)


def marked_by_fault(sample: Sample, right: str, kind: str) -> dict[str, Marked]:
    """Mark the sentences of a wrong answer that the right one does not have, or not again."""
    kept, wrong = texts_of_sentences(right), []
    text = sample.completion_text
    for span in sentences(text):
        sentence = text[span.start : span.end]
        if sentence in kept:
            kept.remove(sentence)
        else:
            wrong.append(span)
    return {aspect: Marked(sample, wrong) for aspect, kinds in FAULTS.items() if kind in kinds}


def labels_of(features: ModelInput, wrong: Sequence[Span]) -> list[int]:
    """Return the label of each segment that is read."""
    return [
        int(not any(max(one.start, start) < min(one.end, end) for start, end in wrong))
        for one in features.segments[: len(features.read_positions)]
    ]


def examples(questions: Sequence[Question], models: Mapping[str, RewardModel]) -> list[Example]:
    """Prepare the answers whose errors people marked."""
    return [
        Example(
            {
                aspect: _labeled(models[ASPECTS[aspect]], marked)
                for aspect, marked in marked_by_people(question).items()
                if marked.sample.completion_text.strip()
            }
        )
        for question in questions
    ]


def _labeled(model: RewardModel, marked: Marked) -> tuple[ModelInput, list[int]]:
    (features,) = prepared(model, [marked.sample])
    return features, labels_of(features, marked.wrong)
