"""The recipe table `overlong`: rewards of completions at or near the policy's token limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alarm_models.errors import SampleError
from alarm_models.types import Reward, Sample

__all__ = ["OverlongSpec", "punished", "soft_overlong_punishment"]

_ENDED_AT_LIMIT = "length"


class OverlongSpec(BaseModel):
    """What happens to a sample whose completion is at or near the policy's token limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    action: Literal["penalty", "skip", "ramp"] = Field(
        description='`penalty` and `skip` apply to `finish_reason` "length", `ramp` to the length'
    )
    penalty: float | None = Field(
        default=None, description="for `penalty`: added to the reward; default -1"
    )
    max_length: int | None = Field(
        default=None, ge=1, description="for `ramp`: the policy's token limit"
    )
    cache: int | None = Field(
        default=None,
        ge=1,
        description="for `ramp`: number of tokens before the limit over which it grows",
    )
    weight: float | None = Field(
        default=None, ge=0, description="for `ramp`: the largest punishment; default 1"
    )

    @model_validator(mode="after")
    def _has_its_keys(self) -> OverlongSpec:
        own = {"penalty": {"penalty"}, "skip": set(), "ramp": {"max_length", "cache", "weight"}}
        foreign = sorted(self.model_fields_set - own[self.action] - {"action"})
        if foreign:
            raise ValueError(f"action {self.action!r} does not use {', '.join(foreign)}")
        if self.action == "ramp":
            missing = [name for name in ("max_length", "cache") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"action 'ramp' requires {' and '.join(missing)}")
            if (self.cache or 0) > (self.max_length or 0):
                raise ValueError(
                    f"cache must be at most max_length, got cache {self.cache} and max_length "
                    f"{self.max_length}"
                )
        return self

    def fault(self, sample: Sample) -> SampleError | None:
        """Return why a sample is neither scored nor rewarded, or None."""
        if self.action == "skip" and sample.finish_reason == _ENDED_AT_LIMIT:
            return SampleError(
                "overlong",
                'finish_reason is "length", and the recipe skips such samples '
                '(overlong.action "skip")',
            )
        if self.action == "ramp" and sample.token_offsets is None:
            return SampleError(
                "invalid_sample", "overlong.action `ramp` requires token_offsets: send them"
            )
        return None

    def applied_to(self, reward: Reward, sample: Sample) -> Reward:
        """Return a reward with the punishment on its last token; unchanged if it has no tokens."""
        punishment = self._punishment(sample)
        tokens = reward.token_rewards
        if punishment == 0 or tokens == ():
            return reward
        if tokens is None:
            return replace(reward, reward=reward.reward + punishment)
        tokens = (*tokens[:-1], tokens[-1] + punishment)
        return replace(reward, reward=float(sum(tokens)), token_rewards=tokens)

    def _punishment(self, sample: Sample) -> float:
        if self.action == "ramp":
            num_tokens = len(sample.token_offsets or ())
            weight = 1.0 if self.weight is None else self.weight
            return weight * soft_overlong_punishment(
                num_tokens, self.max_length or 1, self.cache or 1
            )
        if self.action == "penalty" and sample.finish_reason == _ENDED_AT_LIMIT:
            return -1.0 if self.penalty is None else self.penalty
        return 0.0


def soft_overlong_punishment(num_tokens: int, max_length: int, cache: int) -> float:
    """Return 0 up to ``max_length - cache`` tokens, then fall linearly to -1 at ``max_length``.

    Source: DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13); TRL's
    ``get_soft_overlong_punishment``.
    """
    return max(-1.0, min(0.0, (max_length - cache - num_tokens) / cache))


def punished(
    rewards: Sequence[Reward | SampleError], samples: Sequence[Sample], spec: OverlongSpec
) -> list[Reward | SampleError]:
    """Apply a recipe's table `overlong` to rewards."""
    return [
        spec.applied_to(reward, sample) if isinstance(reward, Reward) else reward
        for reward, sample in zip(rewards, samples, strict=True)
    ]
