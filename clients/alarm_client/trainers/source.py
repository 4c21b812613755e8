"""Rewards for a trainer's samples: one server, one failure policy, blocking or awaited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from alarm_client.async_client import AsyncAlarmClient
from alarm_client.client import AlarmClient
from alarm_client.errors import AlarmError
from alarm_client.retries import Retries
from alarm_client.trainers.components import AspectNames
from alarm_client.trainers.failure import failed_call
from alarm_client.trainers.settings import Habits, Settings, read_settings
from alarm_client.trainers.texts import plain_samples, template_of
from alarm_client.types import Reward, RewardResult, Sample, Score, ScoreResult

# A server that is restarted is waited for about two and a half minutes, if the deadline allows: a
# training run has more to lose than that.
_PATIENT = Retries(max_reconnects=12)


class RewardSource:
    """Rewards under one trainer's settings; safe to pickle, to fork and to use from any loop.

    A result has one reward a sample, in order. Where the policy is not to raise, a failed call
    gives rewards without a number; see `failure`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._template = template_of(settings.template)
        self.aspect_names = AspectNames(settings.aspect_names)
        self._client = AlarmClient(
            settings.url, api_key=settings.api_key, timeout=settings.timeout, retries=_PATIENT
        )
        self._async_client = AsyncAlarmClient(
            settings.url, api_key=settings.api_key, timeout=settings.timeout, retries=_PATIENT
        )

    def rewards(self, samples: Sequence[Sample]) -> list[Reward]:
        """The rewards, from this thread."""
        if not samples:
            return []
        given = self.settings
        samples = plain_samples(samples, self._template, given.trainer)
        try:
            if given.model:
                return _from_scores(self._client.score(samples, given.model), samples)
            result = self._client.hierarchical_reward(samples, given.recipe, aspects=given.aspects)
        except AlarmError as error:
            return failed_call(error, len(samples), given.on_failure)
        return list(result.rewards)

    async def arewards(self, samples: Sequence[Sample]) -> list[Reward]:
        """The rewards, awaited on the running loop."""
        if not samples:
            return []
        given = self.settings
        samples = plain_samples(samples, self._template, given.trainer)
        try:
            if given.model:
                return _from_scores(await self._async_client.score(samples, given.model), samples)
            result: RewardResult = await self._async_client.hierarchical_reward(
                samples, given.recipe, aspects=given.aspects
            )
        except AlarmError as error:
            return failed_call(error, len(samples), given.on_failure)
        return list(result.rewards)

    def wait_ready(self, timeout: float = 600.0) -> None:
        """Return when the server's models are ready; past `timeout` raise the server's reason."""
        self._client.wait_ready(timeout)

    def close(self) -> None:
        """Close the blocking connections; awaited ones close with their loop."""
        self._client.close()


def source_of(habits: Habits, given: Mapping[str, Any] | None = None) -> RewardSource:
    """The source for these settings; hooks that are plain functions share one a process."""
    return _cached(read_settings(habits, given))


@lru_cache(maxsize=32)
def _cached(settings: Settings) -> RewardSource:
    return RewardSource(settings)


def _from_scores(result: ScoreResult, samples: Sequence[Sample]) -> list[Reward]:
    return [
        _from_score(score, sample) for score, sample in zip(result.scores, samples, strict=True)
    ]


def _from_score(score: Score, sample: Sample) -> Reward:
    """A model's raw score as a reward, on the last token where tokens were sent."""
    reward = Reward(score.id, score.score, None, None, None, {}, score.truncated, score.error)
    if sample.token_offsets is None or score.score is None:
        return reward
    num_tokens = len(sample.token_offsets)
    laid = (0.0,) * (num_tokens - 1) + (score.score,) if num_tokens else ()
    return replace(reward, token_rewards=laid)
