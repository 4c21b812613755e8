"""The results of a call that was cut into several requests, joined in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alarm_client.errors import ProtocolError
from alarm_client.types import RewardResult, ScoreResult, Usage


def merge_scores(results: Sequence[ScoreResult]) -> ScoreResult:
    """The results of one call's parts as one."""
    fingerprint = _one_fingerprint([result.fingerprint for result in results])
    scores = tuple(score for result in results for score in result.scores)
    return ScoreResult(results[0].model, fingerprint, scores, _sum(r.usage for r in results))


def merge_rewards(results: Sequence[RewardResult]) -> RewardResult:
    """The results of one call's parts as one."""
    fingerprint = _one_fingerprint([result.fingerprint for result in results])
    rewards = tuple(reward for result in results for reward in result.rewards)
    return RewardResult(results[0].recipe, fingerprint, rewards, _sum(r.usage for r in results))


def _sum(usages: Iterable[Usage]) -> Usage:
    every = list(usages)
    return Usage(sum(u.num_tokens for u in every), sum(u.num_computed_tokens for u in every))


def _one_fingerprint(fingerprints: Sequence[str]) -> str:
    if len(set(fingerprints)) > 1:
        raise ProtocolError(
            f"the server changed during the call: fingerprints {sorted(set(fingerprints))}",
            retryable=True,
        )
    return fingerprints[0]
