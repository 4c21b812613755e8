"""A stand-in for a device that uses no core: it sleeps for the time the tokens would take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from alarm_models.modeling.inputs import BatchLayout, ForwardOutput, ModelInput
from alarm_models.reward_models.base import Model, Prepared
from alarm_models.types import Sample, Score
from alarm_service.engine.model_set import ServedModel

__all__ = ["TOKENS_PER_S", "sleepers"]

#: Tokens per second of one device.
TOKENS_PER_S = 20_000


class Sleeper:
    """Scores a completion by its number of words; each is a token."""

    fingerprint = "sleeper"
    limit: int | None = None
    dtype: str | None = None
    cost = BatchLayout.PACKED

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Count words."""
        return [
            ModelInput((1,) * len(f"{one.prompt_text} {one.completion_text}".split()), (), False)
            for one in samples
        ]

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Sleep for the time of the batch's tokens; no tokens are shared."""
        num_tokens = [one.num_tokens for one in batch]
        time.sleep(sum(num_tokens) / TOKENS_PER_S)
        return ForwardOutput([torch.tensor([[float(one)]]) for one in num_tokens], num_tokens)

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return the number of words."""
        return Score(outputs.item(), None, features.num_tokens, features.truncated)


def sleepers(wanted: Mapping[str, ServedModel], device: Any) -> Mapping[str, Model]:
    """Load a `Sleeper` for every model."""
    return dict.fromkeys(wanted, Sleeper())
