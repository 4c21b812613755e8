"""The story of one reward: holistic first, aspects for those past the threshold, then the sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from alarm_models.alignment import words
from alarm_models.assembly import Scored, aspect_reward, assemble
from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy, needs_aspect
from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import Overrides
from alarm_models.sample import AspectReward, Reward, Sample, Score
from alarm_models.shaping import Shaping
from alarm_service.engine import Engine
from alarm_service.gathering import Found, Gathering, counts
from alarm_service.generations.generation import Generation
from alarm_service.scheduling.caller import INTERNAL, Caller
from alarm_service.telemetry.earnings import AspectEarned, Earned
from alarm_service.telemetry.reward_metrics import RewardMetrics

__all__ = ["Rewards", "reward_samples", "rewards_in"]


@dataclass(frozen=True, slots=True)
class Rewards:
    """One reward or error a sample, in order, the recipe that they are by, and what they cost."""

    recipe: Recipe
    fingerprint: str
    rewards: Sequence[Reward | SampleError]
    num_tokens: int
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class _Story:
    """One request's samples, and the recipe that rewards them."""

    recipe: Recipe
    samples: Sequence[Sample]
    overrides: Overrides

    def rewards(self, found: Found, hierarchy: Hierarchy) -> list[Reward | SampleError]:
        """Combine each sample's scores; one that lacks a score it needs has that score's error."""
        rewards: dict[int, Reward | SampleError] = {}
        scored: dict[int, Scored] = {}
        for index in range(len(self.samples)):
            try:
                scored[index] = self._scored(index, found, hierarchy)
            except SampleError as error:
                rewards[index] = error
        rewards |= zip(scored, assemble(list(scored.values()), hierarchy), strict=True)
        return [rewards[index] for index in range(len(self.samples))]

    def _scored(self, index: int, found: Found, hierarchy: Hierarchy) -> Scored:
        sample = self.samples[index]
        holistic = _score(found.holistic[index])
        is_counted = counts(holistic, hierarchy)
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
        return Scored(sample, holistic, aspects, None if reference is None else _score(reference))

    def _aspect(self, sample: Sample, name: str, score: Score) -> AspectReward:
        rule = self.recipe.aspect_rule(name, self.overrides.shaping)
        aspect = aspect_reward(score, rule, sample)
        if not math.isfinite(aspect.reward):
            raise SampleError("non_finite", "its constants are so large that its reward overflows")
        return aspect

    def note(
        self, rewards: Sequence[Reward | SampleError], found: Found, metrics: RewardMetrics
    ) -> None:
        """Tell the metrics what was earned, and for what."""
        earned = []
        for index, reward in enumerate(rewards):
            if isinstance(reward, SampleError):
                metrics.failed(self.recipe.name, reward.code)
            else:
                earned.append(self._earned(index, reward, found))
        metrics.rewarded(self.recipe.name, earned)

    def _earned(self, index: int, reward: Reward, found: Found) -> Earned:
        sample = self.samples[index]
        tokens = sample.token_offsets or words(sample.completion_text)
        aspects = {}
        for name, aspect in reward.aspects.items():
            score = found.aspects.get(name, {}).get(index)
            if aspect is not None and isinstance(score, Score):
                rule = self.recipe.aspect_rule(name, self.overrides.shaping)
                values = [value for _, value in rule.values(score, tokens)]
                is_sigmoid = rule.shaping is Shaping.SIGMOID
                aspects[name] = AspectEarned(aspect.reward, values, is_sigmoid)
        return Earned(
            prompt=sample.prompt,
            num_characters=len(sample.completion_text),
            reward=reward.reward,
            z=reward.holistic_normalized,
            admitted=reward.admitted,
            truncated=reward.truncated,
            aspects=aspects,
        )


async def reward_samples(
    engine: Engine,
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
    engine.catalog.recipe(name).hierarchy_with(overrides)  # what is wrong is told at once
    async with engine.admitted(samples, caller) as generation:
        recipe = generation.catalog.recipe(name)
        hierarchy = recipe.hierarchy_with(overrides)
        gathering = Gathering(engine, generation, recipe, samples, caller)
        found = await gathering.found(hierarchy, everything=aspects == "all")
        story = _Story(recipe, samples, overrides)
        rewards = await engine.passage.in_worker(partial(story.rewards, found, hierarchy))
        await engine.passage.in_worker(partial(story.note, rewards, found, engine.metrics.rewards))
        return Rewards(
            recipe,
            generation.fingerprint(recipe, overrides),
            rewards,
            gathering.num_tokens,
            gathering.num_computed_tokens,
        )


async def rewards_in(
    engine: Engine, generation: Generation, recipe: Recipe, samples: Sequence[Sample]
) -> list[Reward | SampleError]:
    """Reward samples by a generation's recipe, in the house or not; no metrics hear of it."""
    hierarchy = recipe.hierarchy_with(Overrides())
    gathering = Gathering(engine, generation, recipe, samples)
    found = await gathering.found(hierarchy, everything=False)
    return _Story(recipe, samples, Overrides()).rewards(found, hierarchy)


def _score(outcome: Score | SampleError) -> Score:
    if isinstance(outcome, SampleError):
        raise outcome
    return outcome
