"""Prepares training data with the server's models, so that training and serving agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.loader import load_recipe
from alarm_models.reward_models.base import RewardModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample
from data import Pair, Question, is_error

__all__ = ["ASPECTS", "Example", "examples", "load_models"]

ASPECTS = {"factuality": "factuality_rm", "relevance": "relevance_rm"}


@dataclass(frozen=True, slots=True)
class Example:
    """One question: its answers, the human preferences, and the segments of the first answer.

    ``labels`` has, for each aspect, 1 for a segment without an error and 0 for one with an error.
    """

    answers: list[ModelInput]
    pairs: tuple[Pair, ...]
    aspects: dict[str, ModelInput]
    labels: dict[str, list[int]]


def load_models(settings: Sequence[str] = ()) -> dict[str, RewardModel]:
    """Load the recipe's models on the CPU."""
    recipe = load_recipe("mini", settings)
    loader = Loader(torch.device("cpu"))
    return {name: loader.load(spec, recipe.field_patterns) for name, spec in recipe.models.items()}


def examples(questions: Sequence[Question], models: dict[str, RewardModel]) -> list[Example]:
    """Prepare questions; the human correction of the first answer is a fifth, better answer."""
    return [_example(question, models) for question in questions]


def _example(question: Question, models: dict[str, RewardModel]) -> Example:
    answers = [*question.answers]
    pairs = list(question.pairs)
    correction = question.references[1].strip()
    if correction and correction != answers[0].strip():
        pairs.append(Pair(len(answers), 0))
        answers.append(correction)
    samples = [Sample(question.prompt, answer) for answer in answers]
    aspects: dict[str, ModelInput] = {}
    labels: dict[str, list[int]] = {}
    for aspect, model in ASPECTS.items():
        (features,) = models[model].prepare(samples[:1])
        if isinstance(features, ModelInput):
            aspects[aspect] = features
            labels[aspect] = [
                int(not is_error(span, question.errors, aspect)) for span in features.segments
            ]
    prepared = models["preference"].prepare(samples)
    return Example(
        [one for one in prepared if isinstance(one, ModelInput)], tuple(pairs), aspects, labels
    )
