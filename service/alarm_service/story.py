"""The story of one reward: holistic first, aspects for those past the threshold, then the sum."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from alarm_models.assembly import aspect_reward, assemble
from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy, counts_aspects, normalize
from alarm_models.recipe import Overrides, Recipe
from alarm_models.sample import AspectReward, Reward, Sample, Score
from alarm_models.shaping import Shaping
from alarm_service.earnings import AspectEarned, Earned
from alarm_service.engine import Engine

__all__ = ["Rewards", "reward_samples"]

Outcome = Score | SampleError


@dataclass(frozen=True, slots=True)
class Rewards:
    """One reward or error a sample, in order, and what they cost."""

    rewards: Sequence[Reward | SampleError]
    num_tokens: int
    num_computed_tokens: int


@dataclass(slots=True)
class _Story:
    """One request's samples, and what they have cost so far."""

    engine: Engine
    recipe: Recipe
    samples: Sequence[Sample]
    overrides: Overrides
    num_tokens: int = 0
    num_computed_tokens: int = 0

    async def scores(self, model: str, indices: Sequence[int]) -> dict[int, Outcome]:
        """Score some of the samples with one of the recipe's models."""
        served = self.engine.catalog.model_of(self.recipe, model)
        scores = await self.engine.scores(served, [self.samples[index] for index in indices])
        self.num_tokens += scores.num_tokens
        self.num_computed_tokens += scores.num_computed_tokens
        return dict(zip(indices, scores.outcomes, strict=True))

    async def aspects(
        self, names: Sequence[str], indices: Sequence[int]
    ) -> dict[str, dict[int, Outcome]]:
        """Score aspects side by side; those that share a model are read from one pass."""
        models = sorted({self.recipe.aspects[name].model for name in names})
        scores = await asyncio.gather(*(self.scores(model, indices) for model in models))
        by_model = dict(zip(models, scores, strict=True))
        return {name: by_model[self.recipe.aspects[name].model] for name in names}

    def rewards(
        self,
        holistic: Mapping[int, Outcome],
        aspects: Mapping[str, Mapping[int, Outcome]],
        hierarchy: Hierarchy,
    ) -> list[Reward | SampleError]:
        """Combine each sample's scores; one that lacks a score it needs has that score's error."""
        rewards: list[Reward | SampleError] = []
        for index, sample in enumerate(self.samples):
            found = {name: outcomes.get(index) for name, outcomes in aspects.items()}
            try:
                rewards.append(self._reward(sample, holistic[index], found, hierarchy))
            except SampleError as error:
                rewards.append(error)
        return rewards

    def note(
        self,
        rewards: Sequence[Reward | SampleError],
        aspects: Mapping[str, Mapping[int, Outcome]],
    ) -> None:
        """Tell the metrics what was earned, and for what."""
        metrics = self.engine.metrics.rewards
        earned = []
        for index, (sample, reward) in enumerate(zip(self.samples, rewards, strict=True)):
            if isinstance(reward, SampleError):
                metrics.failed(self.recipe.name, reward.code)
            else:
                found = {name: outcomes.get(index) for name, outcomes in aspects.items()}
                earned.append(self._earned(sample, reward, found))
        metrics.rewarded(self.recipe.name, earned)

    def _earned(
        self, sample: Sample, reward: Reward, found: Mapping[str, Outcome | None]
    ) -> Earned:
        aspects = {}
        for name, aspect in reward.aspects.items():
            score = found.get(name)
            if aspect is not None and isinstance(score, Score):
                rule = self.recipe.aspects[name].rule(self.overrides.shaping)
                values = [value for _, value in rule.values(score)]
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

    def _reward(
        self,
        sample: Sample,
        holistic: Outcome,
        found: Mapping[str, Outcome | None],
        hierarchy: Hierarchy,
    ) -> Reward:
        if isinstance(holistic, SampleError):
            raise holistic
        is_counted = _counts(holistic, hierarchy)
        truncated = holistic.truncated
        aspects: dict[str, AspectReward | None] = {}
        for name, spec in self.recipe.aspects.items():
            outcome = found.get(name)
            if isinstance(outcome, Score):
                rule = spec.rule(self.overrides.shaping)
                aspect = aspect_reward(outcome, rule, sample)
                if math.isfinite(aspect.reward):
                    aspects[name] = aspect
                    truncated = truncated or outcome.truncated
                    continue
                outcome = _not_finite()
            # An aspect that was asked for only to be logged costs the sample nothing.
            if outcome is not None and is_counted and hierarchy.weights[name] != 0:
                raise SampleError(outcome.code, f"aspect {name}: {outcome.message}")
            aspects[name] = None
        reward = assemble(sample, holistic, aspects, hierarchy)
        if not (math.isfinite(reward.reward) and math.isfinite(reward.holistic_normalized)):
            raise _not_finite()
        return replace(reward, truncated=truncated)


async def reward_samples(
    engine: Engine,
    recipe: Recipe,
    samples: Sequence[Sample],
    overrides: Overrides,
    aspects: Literal["admitted", "all"],
) -> Rewards:
    """Reward samples by a recipe, with one request's overrides.

    ``admitted`` computes the aspects that the rewards need and no more; ``all`` computes every
    aspect of every sample and changes no reward. Raises `ServiceError` and `RecipeError`.
    """
    hierarchy = recipe.hierarchy_with(overrides)
    async with engine.admitted(samples):
        story = _Story(engine, recipe, samples, overrides)
        everyone = range(len(samples))
        if aspects == "all":
            holistic, found = await asyncio.gather(
                story.scores(recipe.holistic.model, everyone),
                story.aspects(list(recipe.aspects), everyone),
            )
        else:
            holistic = await story.scores(recipe.holistic.model, everyone)
            needed = [name for name in recipe.aspects if hierarchy.weights[name] != 0]
            counted = [index for index in everyone if _counts(holistic[index], hierarchy)]
            found = await story.aspects(needed, counted) if counted else {}
        rewards = await engine.in_worker(partial(story.rewards, holistic, found, hierarchy))
        await engine.in_worker(partial(story.note, rewards, found))
    return Rewards(rewards, story.num_tokens, story.num_computed_tokens)


def _counts(outcome: Outcome, hierarchy: Hierarchy) -> bool:
    if isinstance(outcome, SampleError) or outcome.value is None:
        return False
    return counts_aspects(normalize(outcome.value, hierarchy), hierarchy)


def _not_finite() -> SampleError:
    return SampleError("non_finite", "weights or constants are so large that the reward overflows")
