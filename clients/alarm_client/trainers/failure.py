"""What becomes of samples without a reward: raised, skipped, or given a value; said once a call."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from alarm_client.errors import AlarmError, NotFound, SampleFailed, Unauthorized
from alarm_client.trainers.components import part_of
from alarm_client.trainers.settings import OnFailure
from alarm_client.types import Reward, SampleError

LOG = logging.getLogger("alarm_client.trainers")

# No policy hides these: the address, the key or a name is wrong, and waiting does not mend it.
MISCONFIGURED = (Unauthorized, NotFound)


def failed_call(error: AlarmError, num_samples: int, policy: OnFailure) -> list[Reward]:
    """A reward without a number for each sample of a failed call, unless it is to be raised."""
    if policy == "raise" or isinstance(error, MISCONFIGURED):
        raise error
    reason = SampleError(error.code or type(error).__name__, str(error))
    return [Reward(None, None, None, None, None, {}, False, reason) for _ in range(num_samples)]


def scalars(
    rewards: Sequence[Reward], policy: OnFailure, part: str = "reward"
) -> list[float | None]:
    """One number a sample, its reward or a part of it; where it has none, what the policy says."""
    report(rewards, policy)
    substitute = None if isinstance(policy, str) else policy
    return [substitute if reward.reward is None else part_of(reward, part) for reward in rewards]


def numbers(rewards: Sequence[Reward], policy: OnFailure) -> list[float]:
    """One number a sample, for trainers that take nothing else."""
    found = [value for value in scalars(rewards, policy) if value is not None]
    if len(found) != len(rewards):
        raise ValueError("this trainer needs a number a sample; on_failure cannot be 'none'")
    return found


def report(rewards: Sequence[Reward], policy: OnFailure) -> None:
    """Raise or log, once for all of them, that samples have no reward."""
    failed = [reward for reward in rewards if reward.reward is None]
    if not failed:
        return
    error = failed[0].error or SampleError("no_segments", "the model found nothing to judge")
    message = (
        f"{len(failed)} of {len(rewards)} samples have no reward; "
        f"the first: {error.code}: {error.message}"
    )
    if policy == "raise":
        raise SampleFailed(message, code=error.code)
    LOG.warning("%s; taken as %s", message, policy)
