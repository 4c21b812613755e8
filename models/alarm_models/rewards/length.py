"""Kind `length`: how many tokens a completion has."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alarm_models.features import BatchCost, Features
from alarm_models.rewards.base import Prepared
from alarm_models.sample import Sample, Score

__all__ = ["LengthModel"]


class LengthModel:
    """Counts the policy's tokens, or white-space words where the caller sends no token offsets."""

    fingerprint = "length"
    limit: int | None = None
    cost = BatchCost.PACKED

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Compute nothing: no sample needs the device."""
        return []

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Count."""
        return [Score(float(_length(sample)), None, 0, False) for sample in samples]

    def forward(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run nothing: no sample needs the device."""
        return []

    def read(self, features: Features, outputs: torch.Tensor) -> Score:
        """Read nothing: no sample has outputs."""
        raise NotImplementedError("a length needs no forward pass")


def _length(sample: Sample) -> int:
    if sample.token_offsets is not None:
        return len(sample.token_offsets)
    return len(sample.completion_text.split())
