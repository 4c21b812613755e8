"""RewardSource: the rewards of samples under a trainer's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from alarm_client._payloads import reward_payload
from alarm_client._transport import content_digest
from alarm_client.client import AlarmClient, AsyncAlarmClient
from alarm_client.errors import AlarmError
from alarm_client.trainers._components import AspectNames
from alarm_client.trainers._failures import InvalidCalls, failed_call
from alarm_client.trainers._inputs import plain_samples, template_of, with_reply_starts
from alarm_client.trainers._settings import Settings, TrainerDefaults, read_settings
from alarm_client.trainers._shared_calls import Consumer, SharedCalls
from alarm_client.types import Reward, RewardResult, Sample, Score, ScoreResult


class RewardSource:
    """Rewards under one trainer's settings; safe to pickle, to fork and to use from any event loop.

    A result has one reward per sample, in order. A failed call gives rewards of None,
    unless the policy is "raise" (see `_failures`). Reward functions that each pass a `consumer`
    share one call per batch.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._template = template_of(settings.template)
        self.aspect_names = AspectNames(settings.aspect_names)
        self._invalid = InvalidCalls(settings.defaults)
        self._shared: SharedCalls[list[Reward]] = SharedCalls()
        self._hierarchy: Mapping[str, Any] | None = None
        self._client = AlarmClient(
            settings.url,
            api_key=settings.api_key,
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
        )
        self._async_client = AsyncAlarmClient(
            settings.url,
            api_key=settings.api_key,
            timeout=settings.timeout,
            connect_timeout=settings.connect_timeout,
        )

    def rewards(self, samples: Sequence[Sample], consumer: Consumer | None = None) -> list[Reward]:
        """The rewards, for blocking callers."""
        if not samples:
            return []
        samples = self._plain(samples)
        if consumer is None:
            return self._rewards(samples)
        return self._shared.result(consumer, _key(samples), partial(self._rewards, samples))

    async def arewards(
        self, samples: Sequence[Sample], consumer: Consumer | None = None
    ) -> list[Reward]:
        """The rewards, for asyncio callers."""
        if not samples:
            return []
        samples = self._plain(samples)
        if consumer is None:
            return await self._arewards(samples)
        return await self._shared.aresult(consumer, _key(samples), partial(self._arewards, samples))

    def hierarchy(self) -> Mapping[str, Any]:
        """The rule and the weights of the recipe, with the overrides applied.

        Empty for a model, or if the server does not list them.
        """
        if self.settings.model is not None:
            return {}
        if self._hierarchy is None:
            try:
                recipes = self._client.models().recipes
            except AlarmError:
                return {}  # requested again with the next rewards
            self._hierarchy = _hierarchy(recipes, self.settings)
        return self._hierarchy

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when the server's models are ready; past `timeout` raise the server's reason."""
        self._client.wait_ready(timeout)

    def close(self) -> None:
        """Close the blocking connections; asyncio connections close with their loop."""
        self._client.close()

    def _plain(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples without the markup of chat templates, with the starts of their replies."""
        samples = plain_samples(samples, self._template, self.settings.trainer)
        begun = self.settings.reply_start
        return [with_reply_starts(one, begun) for one in samples] if begun else samples

    def _rewards(self, samples: Sequence[Sample]) -> list[Reward]:
        given = self.settings
        result: RewardResult | ScoreResult
        try:
            if given.model:
                result = self._client.score(samples, given.model)
            else:
                result = self._client.hierarchical_reward(
                    samples, given.recipe, given.overrides, given.aspects
                )
        except AlarmError as error:
            return self._failed(error, len(samples))
        return self._answered(result, samples)

    async def _arewards(self, samples: Sequence[Sample]) -> list[Reward]:
        given = self.settings
        result: RewardResult | ScoreResult
        try:
            if given.model:
                result = await self._async_client.score(samples, given.model)
            else:
                result = await self._async_client.hierarchical_reward(
                    samples, given.recipe, given.overrides, given.aspects
                )
        except AlarmError as error:
            return self._failed(error, len(samples))
        return self._answered(result, samples)

    def _answered(
        self, result: RewardResult | ScoreResult, samples: Sequence[Sample]
    ) -> list[Reward]:
        if isinstance(result, RewardResult):
            return self._invalid.checked(result.rewards)
        return self._invalid.checked(_from_scores(result, samples))

    def _failed(self, error: AlarmError, num_samples: int) -> list[Reward]:
        has_answered = self._client.has_answered or self._async_client.has_answered
        policy = self.settings.on_failure
        return failed_call(error, num_samples, policy, has_answered=has_answered)


def get_reward_source(
    defaults: TrainerDefaults, given: Mapping[str, Any] | None = None
) -> RewardSource:
    """The source for these settings, shared by all function hooks of this process."""
    return source_for(read_settings(defaults, given))


def source_for(settings: Settings) -> RewardSource:
    """The source for these settings, one per process."""
    return _cached(settings)


@lru_cache(maxsize=32)
def _cached(settings: Settings) -> RewardSource:
    return RewardSource(settings)


def _hierarchy(recipes: Sequence[Mapping[str, Any]], settings: Settings) -> Mapping[str, Any]:
    for recipe in recipes:
        if settings.recipe in (None, recipe.get("name")) and "weights" in recipe:
            overrides: Mapping[str, Any] = settings.overrides or {}
            weights = {**recipe["weights"], **overrides.get("weights", {})}
            return {**recipe, **overrides, "weights": weights}
    return {}


def _key(samples: Sequence[Sample]) -> str:
    """A digest of the samples as sent, without the ids that members of groups get by chance."""
    sizes = [sample.group_size for sample in samples]
    unnamed = [
        replace(sample, group_size=None) if sample.id is None else sample for sample in samples
    ]
    return f"{content_digest(reward_payload(unnamed, None, None, 'all').body)} {sizes}"


def _from_scores(result: ScoreResult, samples: Sequence[Sample]) -> list[Reward]:
    return [
        _from_score(score, sample) for score, sample in zip(result.scores, samples, strict=True)
    ]


def _from_score(score: Score, sample: Sample) -> Reward:
    """A model's raw score as a reward; with token offsets it is placed on the last token."""
    reward = Reward(
        id=score.id,
        reward=score.score,
        token_rewards=None,
        holistic=None,
        admitted=None,
        aspects={},
        truncated=score.truncated,
        error=score.error,
        omitted=score.omitted,
    )
    if sample.token_offsets is None or score.score is None:
        return reward
    num_tokens = len(sample.token_offsets)
    rewards = (0.0,) * (num_tokens - 1) + (score.score,) if num_tokens else ()
    return replace(reward, token_rewards=rewards)
