"""The failure policy: how trainers see a failed sample or a failed call."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from alarm_client.errors import (
    AlarmError,
    InvalidRequest,
    NotFound,
    SampleFailed,
    TooLarge,
    Unauthorized,
)
from alarm_client.trainers._components import part_of
from alarm_client.trainers._settings import OnFailure, TrainerDefaults
from alarm_client.types import Id, Reward, SampleError

LOG = logging.getLogger("alarm_client.trainers")

# Raised under any policy: the URL, the key, a name or the request is wrong, so that every later
# call would fail too.
MISCONFIGURED = (Unauthorized, NotFound, InvalidRequest, TooLarge)

# The error code of a sample that is invalid as sent.
_INVALID = "invalid_sample"

# Number of consecutive one-sample calls, all invalid, that indicates a misconfiguration.
_MOST_INVALID = 16


def failed_call(
    error: AlarmError, num_samples: int, policy: OnFailure, *, has_answered: bool = True
) -> list[Reward]:
    """A reward of None for each sample of a failed call, or raise the error.

    It is raised under the policy "raise", if later calls would fail too, and if no server has ever
    answered (`has_answered`): a run must not start without rewards.
    """
    # No group of a failed call has a mean.
    is_raised = policy in ("raise", "group_mean")
    if is_raised or isinstance(error, MISCONFIGURED) or not has_answered:
        raise error
    reason = SampleError(error.code or type(error).__name__, str(error))
    return [Reward(None, None, None, None, None, {}, False, reason) for _ in range(num_samples)]


class InvalidCalls:
    """Distinguishes a misconfiguration (every sample is invalid) from an invalid sample."""

    def __init__(self, defaults: TrainerDefaults) -> None:
        self.defaults = defaults
        self._has_rewarded = False
        self._num_in_a_row = 0

    def checked(self, rewards: Sequence[Reward]) -> list[Reward]:
        """The rewards of a call, with advice in the messages of invalid samples.

        Raises SampleFailed if all samples of the call are invalid. For calls of one sample it is
        raised before the first reward, and after 16 consecutive invalid calls.
        """
        advised = [self._advised(reward) for reward in rewards]
        invalid = [one.error for one in advised if one.error and one.error.code == _INVALID]
        self._has_rewarded |= any(reward.reward is not None for reward in rewards)
        if not advised or len(invalid) < len(advised):
            self._num_in_a_row = 0
            return advised
        self._num_in_a_row += 1
        is_chance = len(advised) == 1 and self._has_rewarded
        if is_chance and self._num_in_a_row < _MOST_INVALID:
            return advised
        calls = f"of {self._num_in_a_row} calls in a row" if is_chance else "of this call"
        raise SampleFailed(
            f"every sample {calls} is invalid, to which on_failure does not apply: "
            f"{self.defaults.trainer} does not send what the server's recipe requires; the first: "
            f"{_INVALID}: {invalid[0].message}",
            code=_INVALID,
        )

    def _advised(self, reward: Reward) -> Reward:
        error = reward.error
        if error is None or error.code != _INVALID:
            return reward
        advice = _advice(error.message, self.defaults)
        return replace(reward, error=replace(error, message=error.message + advice))


def scalars(
    rewards: Sequence[Reward],
    policy: OnFailure,
    part: str = "reward",
    groups: Sequence[Id] | None = None,
) -> list[float | None]:
    """One number per sample: its reward or a component of it, or the value of the failure policy.

    `groups`: the group of each sample, for "group_mean"; by default all samples are one group. A
    part that was not computed is None, or its mean over the group.
    """
    report(rewards, policy, groups)
    return _values(rewards, policy, part, groups)


def _values(
    rewards: Sequence[Reward], policy: OnFailure, part: str, groups: Sequence[Id] | None
) -> list[float | None]:
    substitute = policy if isinstance(policy, float) else None
    values = [substitute if reward.reward is None else part_of(reward, part) for reward in rewards]
    return with_group_means(values, groups) if policy == "group_mean" else values


def numbers(
    rewards: Sequence[Reward],
    policy: OnFailure,
    groups: Sequence[Id] | None = None,
    part: str = "reward",
) -> list[float]:
    """One number per sample, as in `scalars`, for trainers that do not accept None."""
    (values,) = numbers_of_parts(rewards, policy, (part,), groups).values()
    return values


def numbers_of_parts(
    rewards: Sequence[Reward],
    policy: OnFailure,
    parts: Sequence[str],
    groups: Sequence[Id] | None = None,
) -> dict[str, list[float]]:
    """`numbers` of several parts; ValueError for a part that was not computed."""
    report(rewards, policy, groups)
    return {part: _without_none(_values(rewards, policy, part, groups), part) for part in parts}


def _without_none(values: Sequence[float | None], part: str) -> list[float]:
    found = [value for value in values if value is not None]
    if len(found) == len(values):
        return found
    if part == "reward":
        raise ValueError("this trainer requires one number per sample; on_failure cannot be 'none'")
    raise ValueError(
        f"{part!r} was not computed for sample {values.index(None)}, and this trainer requires "
        'numbers: with aspects = "admitted" only samples past the threshold have it, with "all" '
        "every one"
    )


def with_group_means(
    values: Sequence[float | None], groups: Sequence[Id] | None = None
) -> list[float | None]:
    """The values, each None replaced by the mean of its group; None if the whole group is None."""
    groups = [None] * len(values) if groups is None else groups
    present: dict[Id, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            present.setdefault(group, []).append(value)
    means = {group: sum(some) / len(some) for group, some in present.items()}
    return [
        means.get(group) if value is None else value
        for value, group in zip(values, groups, strict=True)
    ]


def report(
    rewards: Sequence[Reward], policy: OnFailure, groups: Sequence[Id] | None = None
) -> None:
    """Raise or log, once per call, that samples have no reward.

    With "group_mean", raises if all samples of a group failed.
    """
    failed = [reward for reward in rewards if reward.reward is None]
    if not failed:
        return
    error = failed[0].error or SampleError("no_segments", "the model found no segment")
    message = (
        f"{len(failed)} of {len(rewards)} samples have no reward; "
        f"the first: {error.code}: {error.message}"
    )
    if policy == "raise":
        raise SampleFailed(message, code=error.code)
    if policy == "group_mean":
        _require_means(rewards, groups, message, error.code)
    taken = {"none": "skipped", "group_mean": "taken as the mean of their group"}
    LOG.warning("%s; %s", message, taken.get(str(policy), f"taken as {policy}"))


def _require_means(
    rewards: Sequence[Reward], groups: Sequence[Id] | None, message: str, code: str
) -> None:
    groups = [None] * len(rewards) if groups is None else groups
    rewarded = {
        group for reward, group in zip(rewards, groups, strict=True) if reward.reward is not None
    }
    for group in groups:
        if group not in rewarded:
            size = sum(other == group for other in groups)
            of_one = " Make the trainer's local batch contain whole groups." if size == 1 else ""
            raise SampleFailed(
                f"all {size} samples of a prompt in this call failed, so there is no "
                f"group mean: {message}.{of_one} With a number as on_failure the run "
                "continues past such a prompt",
                code=code,
            )


def missing_field(message: str) -> str | None:
    """The name of the field that an error of the server says is missing."""
    missing = re.search(r"\{(\w+)\}.*`fields`|`?fields\.(\w+)", message)
    return None if missing is None else missing.group(1) or missing.group(2)


def _advice(message: str, defaults: TrainerDefaults) -> str:
    """Which setting provides what the server says is missing in a sample."""
    if re.search(r"\bgroups?\b", message):
        if defaults.whole_groups is not None:
            return (
                ". Each call must contain all completions of a prompt: "
                f"{defaults.trainer} does so with {defaults.whole_groups}. The setting group "
                "(ALARM_GROUP) names a column that identifies prompts (default: the prompt)"
            )
        return (
            f". {defaults.trainer} sends one sample at a time: for a rule that compares "
            "the samples of a group (gdpo, mo_grpo), set group_size (ALARM_GROUP_SIZE) to the "
            "number of completions of a prompt, for which the server then waits"
        )
    name = missing_field(message)
    if name is None:
        return ""
    usual = ", ".join(defaults.references)
    from_where = f" (by default the first of these that is present: {usual})" if usual else ""
    return (
        f'. Set fields to {{"{name}": COLUMN}}, or ALARM_FIELDS={name}=COLUMN, where COLUMN is the '
        f"dataset's column that contains it{from_where if name == 'reference' else ''}"
    )
