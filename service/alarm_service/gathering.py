"""The scores that a recipe's rule asks of its models, gathered side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alarm_models.errors import SampleError
from alarm_models.hierarchy import (
    Hierarchy,
    counts_aspects,
    needs_aspect,
    needs_reference,
    normalize,
)
from alarm_models.recipe import Recipe
from alarm_models.rules import faults
from alarm_models.sample import Sample, Score
from alarm_service.engine import Engine
from alarm_service.errors import ServiceError
from alarm_service.generations.generation import Generation
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.scheduling.loaded import Loaded
from alarm_service.scheduling.work import TimedOut

__all__ = ["Found", "Gathering", "counts"]

Outcome = Score | SampleError


@dataclass(frozen=True, slots=True)
class Found:
    """What models said: a sample's index -> score or error."""

    holistic: Mapping[int, Outcome]
    aspects: Mapping[str, Mapping[int, Outcome]]
    references: Mapping[int, Outcome]


@dataclass(slots=True)
class Gathering:
    """One request's samples, and what they have cost so far."""

    engine: Engine
    generation: Generation
    recipe: Recipe
    samples: Sequence[Sample]
    caller: Caller = INTERNAL
    num_tokens: int = 0
    num_computed_tokens: int = 0
    _has_timed_out: bool = False

    async def found(self, hierarchy: Hierarchy, *, everything: bool) -> Found:
        """Score what the rule needs; with ``everything``, every aspect of every sample too."""
        refused = faults([sample.group for sample in self.samples], hierarchy)
        served = [index for index, fault in enumerate(refused) if fault is None]
        holistic: dict[int, Outcome] = {
            index: fault for index, fault in enumerate(refused) if fault is not None
        }
        references = self.references(served if needs_reference(hierarchy) else ())
        spec = self.recipe.holistic
        if everything:
            scores, aspects, compared = await asyncio.gather(
                self.scores(spec.model, spec.output, served),
                self.aspects(list(self.recipe.aspects), served),
                references,
            )
            return Found(holistic | scores, aspects, compared)
        scores, compared = await asyncio.gather(
            self.scores(spec.model, spec.output, served), references
        )
        needed = [name for name in self.recipe.aspects if needs_aspect(name, hierarchy)]
        counted = [index for index in served if counts(scores[index], hierarchy)]
        aspects = await self.aspects(needed, counted) if counted else {}
        return Found(holistic | scores, aspects, compared)

    async def scores(
        self, model: str, output: str | None, indices: Sequence[int]
    ) -> dict[int, Outcome]:
        """Score some of the samples with one of the recipe's models, or with one output of it."""
        loaded = self.generation.model_of(self.recipe, model)
        scores = await self._scores(loaded, [self.samples[index] for index in indices])
        return {index: _output(one, output) for index, one in zip(indices, scores, strict=True)}

    async def aspects(
        self, names: Sequence[str], indices: Sequence[int]
    ) -> dict[str, dict[int, Outcome]]:
        """Score aspects side by side; those that share a model are read from one pass."""
        models = sorted({self.recipe.aspects[name].model for name in names})
        scores = await asyncio.gather(*(self.scores(model, None, indices) for model in models))
        by_model = dict(zip(models, scores, strict=True))
        found: dict[str, dict[int, Outcome]] = {}
        for name in names:
            spec = self.recipe.aspects[name]
            outcomes = by_model[spec.model].items()
            found[name] = {index: _output(one, spec.output) for index, one in outcomes}
        return found

    async def references(self, indices: Sequence[int]) -> dict[int, Outcome]:
        """Score the reference completions of samples that bring one, each text once."""
        model = self.generation.model_of(self.recipe, self.recipe.holistic.model)
        places: dict[object, int] = {}
        asked: dict[int, int] = {}
        for index in indices:
            sample = self.samples[index]
            if "reference" in sample.fields:
                key = (sample.prompt, tuple(sorted(sample.fields.items())))
                asked[index] = places.setdefault(key, index)
        unique = list(places.values())
        if not unique:
            return {}
        scores = await self._scores(model, [_reference(self.samples[index]) for index in unique])
        found = dict(zip(unique, scores, strict=True))
        return {index: found[place] for index, place in asked.items()}

    async def _scores(self, loaded: Loaded, samples: Sequence[Sample]) -> Sequence[Outcome]:
        try:
            scores = await self.engine.scores(loaded, samples, self.caller)
        except ServiceError as error:
            if not self._has_timed_out:
                raise
            # Who is told to send all again sends the sample again that did not get through.
            return [SampleError("model_failed", f"not scored: {error.message}")] * len(samples)
        self._has_timed_out |= any(isinstance(one, TimedOut) for one in scores.outcomes)
        self.num_tokens += scores.num_tokens
        self.num_computed_tokens += scores.num_computed_tokens
        return scores.outcomes


def counts(outcome: Outcome, hierarchy: Hierarchy) -> bool:
    """Say whether the aspects of a sample count, by its holistic outcome."""
    if isinstance(outcome, SampleError) or outcome.value is None:
        return False
    return counts_aspects(normalize(outcome.value, hierarchy), hierarchy)


def _output(outcome: Outcome, name: str | None) -> Outcome:
    try:
        return outcome if isinstance(outcome, SampleError) else outcome.output(name)
    except SampleError as error:
        return error


def _reference(sample: Sample) -> Sample:
    return replace(sample, completion=sample.fields["reference"], token_offsets=None, segments={})
