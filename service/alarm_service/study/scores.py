"""A study's completions through the models: scores, and what could not be scored."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alarm_models.errors import SampleError
from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import AspectSpec, HolisticSpec
from alarm_models.sample import Sample, Score
from alarm_service.errors import ServiceError
from alarm_service.settings import Settings
from alarm_service.study.errors import StudyError
from alarm_service.study.scorers import Scorer, open_scorer

__all__ = ["Scores", "progress_bar", "score_all"]

#: Samples in the house at once: enough to fill batches of like length.
_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Scores:
    """One score a sample by model, None where it has none; ``faults`` says of which and why.

    ``fingerprints`` are the models': the same fingerprint means the same scores.
    """

    by_model: Mapping[str, Sequence[Score | None]]
    fingerprints: Mapping[str, str]
    faults: tuple[str, ...]

    def of(self, spec: HolisticSpec | AspectSpec) -> Sequence[Score | None]:
        """Return what a part of the recipe reads of its model."""
        return [_output(score, spec.output) for score in self.by_model[spec.model]]


def progress_bar() -> Progress:
    """Return a progress bar that leaves standard output alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def score_all(
    samples: Sequence[Sample], recipe: Recipe, settings: Settings, url: str | None
) -> Scores:
    """Score all samples with every model that the recipe's holistic part and aspects name."""
    models = list(
        dict.fromkeys([recipe.holistic.model, *(one.model for one in recipe.aspects.values())])
    )
    try:
        return asyncio.run(_score_all(samples, models, recipe, settings, url))
    except ServiceError as error:
        raise StudyError(error.message) from error


async def _score_all(
    samples: Sequence[Sample],
    models: Sequence[str],
    recipe: Recipe,
    settings: Settings,
    url: str | None,
) -> Scores:
    async with open_scorer(recipe, settings, url) as scorer:
        with progress_bar() as progress:
            task = progress.add_task("scoring", total=len(models) * len(samples))
            outcomes = {}
            for model in models:
                progress.update(task, description=f"scoring: {model}")
                outcomes[model] = await _score(scorer, model, samples, progress)
        fingerprints = {model: scorer.fingerprint(model) for model in models}
    return Scores(
        {
            model: [one if isinstance(one, Score) else None for one in found]
            for model, found in outcomes.items()
        },
        fingerprints,
        tuple(fault for model, found in outcomes.items() for fault in _faults(model, found)),
    )


async def _score(
    scorer: Scorer, model: str, samples: Sequence[Sample], progress: Progress
) -> list[Score | SampleError]:
    (task,) = progress.task_ids
    found: list[Score | SampleError] = []
    for start in range(0, len(samples), _AT_ONCE):
        chunk = samples[start : start + _AT_ONCE]
        found += await scorer.score(model, chunk)
        progress.advance(task, len(chunk))
    return found


def _faults(model: str, found: Sequence[Score | SampleError]) -> list[str]:
    errors = [one for one in found if isinstance(one, SampleError)]
    counts = Counter(error.code for error in errors)
    examples = {error.code: error.message for error in errors}
    return [
        f"{model} could not score {count} of {len(found)} completions, which are left out: "
        f"{code}, for example {examples[code]!r}"
        for code, count in counts.items()
    ]


def _output(score: Score | None, name: str | None) -> Score | None:
    try:
        return None if score is None else score.output(name)
    except SampleError:
        return None
