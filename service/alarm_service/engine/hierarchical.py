"""Hierarchical rewards: holistic scores, aspects of admitted samples, then the rule."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from alarm_models.cancellation import check_cancelled
from alarm_models.combination.rewards import (
    ScoredSample,
    aspect_reward,
    combine_rewards,
    validate_groups,
)
from alarm_models.combination.rules import (
    RuleParams,
    Shaping,
    aspects_apply,
    needs_aspect,
    needs_reference,
    normalize,
)
from alarm_models.combination.token_alignment import whitespace_tokens
from alarm_models.errors import SampleError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_models.types import AspectReward, Reward, Sample, Score
from alarm_service.engine.caller import INTERNAL, Caller
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.model_set import LoadedModel, ModelSet
from alarm_service.engine.requests import TimedOut
from alarm_service.errors import ServiceError
from alarm_service.observability.reward_metrics import (
    AspectObservation,
    RewardMetrics,
    RewardObservation,
)

__all__ = [
    "CollectedScores",
    "Rewards",
    "ScoreCollector",
    "outcome_passes",
    "reward_admitted",
    "reward_samples",
]

Outcome = Score | SampleError


@dataclass(frozen=True, slots=True)
class CollectedScores:
    """What models said: a sample's index -> score or error."""

    holistic: Mapping[int, Outcome]
    aspects: Mapping[str, Mapping[int, Outcome]]
    references: Mapping[int, Outcome]


@dataclass(slots=True)
class ScoreCollector:
    """One request's samples, and what they have cost so far."""

    engine: RewardEngine
    model_set: ModelSet
    recipe: Recipe
    samples: Sequence[Sample]
    caller: Caller = INTERNAL
    num_tokens: int = 0
    num_computed_tokens: int = 0
    _has_timed_out: bool = False

    async def collect(self, hierarchy: RuleParams, *, everything: bool) -> CollectedScores:
        """Score what the rule needs; with ``everything``, every aspect of every sample too."""
        refused = validate_groups([sample.group for sample in self.samples], hierarchy)
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
            return CollectedScores(holistic | scores, aspects, compared)
        scores, compared = await asyncio.gather(
            self.scores(spec.model, spec.output, served), references
        )
        needed = [name for name in self.recipe.aspects if needs_aspect(name, hierarchy)]
        counted = [index for index in served if outcome_passes(scores[index], hierarchy)]
        aspects = await self.aspects(needed, counted) if counted else {}
        return CollectedScores(holistic | scores, aspects, compared)

    async def scores(
        self, model: str, output: str | None, indices: Sequence[int]
    ) -> dict[int, Outcome]:
        """Score some of the samples with one of the recipe's models, or with one output of it."""
        loaded = self.model_set.model_of(self.recipe, model)
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
        if not any("reference" in self.samples[index].fields for index in indices):
            return {}
        model = self.model_set.model_of(self.recipe, self.recipe.holistic.model)
        # Off the event loop: samples may have any number of fields.
        asked = await self.engine.passage.run_in_thread(partial(self._reference_places, indices))
        unique = [index for index, place in asked.items() if index == place]
        scores = await self._scores(model, [_reference(self.samples[index]) for index in unique])
        found = dict(zip(unique, scores, strict=True))
        return {index: found[place] for index, place in asked.items()}

    def _reference_places(self, indices: Sequence[int]) -> dict[int, int]:
        """Return, for each sample with a reference, the first sample of the same texts."""
        places: dict[object, int] = {}
        asked: dict[int, int] = {}
        for index in indices:
            check_cancelled()
            sample = self.samples[index]
            if "reference" in sample.fields:
                key = (sample.prompt, frozenset(sample.fields.items()))
                asked[index] = places.setdefault(key, index)
        return asked

    async def _scores(self, loaded: LoadedModel, samples: Sequence[Sample]) -> Sequence[Outcome]:
        try:
            scores = await self.engine.score_admitted(loaded, samples, self.caller)
        except ServiceError as error:
            if not self._has_timed_out:
                raise
            # Who is told to send all again sends the sample again that did not get through.
            return [SampleError("model_failed", f"not scored: {error.message}")] * len(samples)
        self._has_timed_out |= any(isinstance(one, TimedOut) for one in scores.outcomes)
        self.num_tokens += scores.num_tokens
        self.num_computed_tokens += scores.num_computed_tokens
        return scores.outcomes


def outcome_passes(outcome: Outcome, hierarchy: RuleParams) -> bool:
    """Say whether the aspects of a sample count, by its holistic outcome."""
    if isinstance(outcome, SampleError) or outcome.value is None:
        return False
    return aspects_apply(normalize(outcome.value, hierarchy), hierarchy)


def _output(outcome: Outcome, name: str | None) -> Outcome:
    try:
        return outcome if isinstance(outcome, SampleError) else outcome.output(name)
    except SampleError as error:
        return error


def _reference(sample: Sample) -> Sample:
    return replace(sample, completion=sample.fields["reference"], token_offsets=None, segments={})


@dataclass(frozen=True, slots=True)
class Rewards:
    """One reward or error a sample, in order, the recipe that they are by, and what they cost."""

    recipe: Recipe
    fingerprint: str
    rewards: Sequence[Reward | SampleError]
    num_tokens: int
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class _RewardComputation:
    """One request's samples, and the recipe that rewards them."""

    recipe: Recipe
    samples: Sequence[Sample]
    overrides: Overrides

    def rewards(self, found: CollectedScores, hierarchy: RuleParams) -> list[Reward | SampleError]:
        """Combine each sample's scores; one that lacks a score it needs has that score's error."""
        rewards: dict[int, Reward | SampleError] = {}
        scored: dict[int, ScoredSample] = {}
        for index in range(len(self.samples)):
            try:
                scored[index] = self._scored(index, found, hierarchy)
            except SampleError as error:
                rewards[index] = error
        rewards |= zip(scored, combine_rewards(list(scored.values()), hierarchy), strict=True)
        return [rewards[index] for index in range(len(self.samples))]

    def _scored(self, index: int, found: CollectedScores, hierarchy: RuleParams) -> ScoredSample:
        sample = self.samples[index]
        holistic = _score(found.holistic[index])
        is_counted = outcome_passes(holistic, hierarchy)
        aspects: dict[str, AspectReward | None] = {}
        for name in self.recipe.aspects:
            outcome = found.aspects.get(name, {}).get(index)
            try:
                aspects[name] = (
                    None if outcome is None else self._aspect(sample, name, _score(outcome))
                )
            except SampleError as error:
                # An aspect that was asked for only to be logged costs the sample nothing.
                if is_counted and needs_aspect(name, hierarchy):
                    raise SampleError(error.code, f"aspect {name}: {error.message}") from error
                aspects[name] = None
        reference = found.references.get(index)
        return ScoredSample(
            sample, holistic, aspects, None if reference is None else _score(reference)
        )

    def _aspect(self, sample: Sample, name: str, score: Score) -> AspectReward:
        rule = self.recipe.aspect_rule(name, self.overrides.shaping)
        aspect = aspect_reward(score, rule, sample)
        if not math.isfinite(aspect.reward):
            raise SampleError("non_finite", "its constants are so large that its reward overflows")
        return aspect

    def record_metrics(
        self,
        rewards: Sequence[Reward | SampleError],
        found: CollectedScores,
        metrics: RewardMetrics,
    ) -> None:
        """Tell the metrics what was earned, and for what."""
        earned = []
        for index, reward in enumerate(rewards):
            if isinstance(reward, SampleError):
                metrics.count_failure(self.recipe.name, reward.code)
            else:
                earned.append(self._observation(index, reward, found))
        metrics.observe_rewards(self.recipe.name, earned)

    def _observation(self, index: int, reward: Reward, found: CollectedScores) -> RewardObservation:
        sample = self.samples[index]
        tokens = sample.token_offsets or whitespace_tokens(sample.completion_text)
        aspects = {}
        for name, aspect in reward.aspects.items():
            score = found.aspects.get(name, {}).get(index)
            if aspect is not None and isinstance(score, Score):
                rule = self.recipe.aspect_rule(name, self.overrides.shaping)
                values = [value for _, value in rule.shaped_values(score, tokens)]
                is_sigmoid = rule.shaping is Shaping.SIGMOID
                aspects[name] = AspectObservation(aspect.reward, values, is_sigmoid)
        return RewardObservation(
            prompt=sample.prompt,
            num_characters=len(sample.completion_text),
            reward=reward.reward,
            z=reward.holistic_normalized,
            admitted=reward.admitted,
            truncated=reward.truncated,
            aspects=aspects,
        )


async def reward_samples(
    engine: RewardEngine,
    name: str | None,
    samples: Sequence[Sample],
    overrides: Overrides,
    aspects: Literal["admitted", "all"],
    caller: Caller = INTERNAL,
) -> Rewards:
    """Reward samples by the recipe of that name, with one request's overrides.

    ``admitted`` computes the aspects that the rewards need and no more; ``all`` computes every
    aspect of every sample and changes no reward. Raises `ServiceError` and `RecipeError`.
    """
    engine.catalog.recipe(name).rule_params(overrides)  # what is wrong is told at once
    async with engine.admit(samples, caller) as generation:
        recipe = generation.catalog.recipe(name)
        hierarchy = recipe.rule_params(overrides)
        gathering = ScoreCollector(engine, generation, recipe, samples, caller)
        found = await gathering.collect(hierarchy, everything=aspects == "all")
        story = _RewardComputation(recipe, samples, overrides)
        rewards = await engine.passage.run_in_thread(partial(story.rewards, found, hierarchy))
        await engine.passage.run_in_thread(
            partial(story.record_metrics, rewards, found, engine.metrics.rewards)
        )
        return Rewards(
            recipe,
            generation.fingerprint(recipe, overrides),
            rewards,
            gathering.num_tokens,
            gathering.num_computed_tokens,
        )


async def reward_admitted(
    engine: RewardEngine, generation: ModelSet, recipe: Recipe, samples: Sequence[Sample]
) -> list[Reward | SampleError]:
    """Reward samples by a generation's recipe, in the house or not; no metrics hear of it."""
    hierarchy = recipe.rule_params(Overrides())
    gathering = ScoreCollector(engine, generation, recipe, samples)
    found = await gathering.collect(hierarchy, everything=False)
    return _RewardComputation(recipe, samples, Overrides()).rewards(found, hierarchy)


def _score(outcome: Score | SampleError) -> Score:
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome
