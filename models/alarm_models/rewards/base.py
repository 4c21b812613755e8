"""What every kind of reward model promises, and what those with weights share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.features import BatchCost, Features
from alarm_models.networks.construction import CONSTRUCTION
from alarm_models.networks.network import Network
from alarm_models.packing.backbone import OFFSET_POSITIONS
from alarm_models.sample import Sample, Score
from alarm_models.specs import NeuralSpec
from alarm_models.texts.tokenizing import Tokenizer

__all__ = [
    "OnDevice",
    "Outcome",
    "Prepared",
    "RewardModel",
    "Weights",
    "max_tokens",
    "require_finite",
    "require_outputs",
]

#: What becomes of a sample at a model.
Outcome = Score | SampleError

#: What preparing a sample gives: work for the device, a score that needs none, or what is wrong.
Prepared = Features | Score | SampleError


class RewardModel(Protocol):
    """A model in three steps, of which only `forward` needs the device.

    `prepare` and `read` may run in any thread; `forward` runs on the thread that owns the device.
    """

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides its scores."""

    @property
    def limit(self) -> int | None:
        """The most tokens it reads of one sample; None where it reads no tokens."""

    @property
    def cost(self) -> BatchCost:
        """What a batch costs it."""

    @property
    def dtype(self) -> str | None:
        """The precision that it computes in, as torch calls it; None where that is not known."""

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to a batch's work, padding not counted."""

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Turn samples into features, one answer a sample, in order."""

    def forward(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""

    def read(self, features: Features, outputs: torch.Tensor) -> Score:
        """Read a sample's score off its outputs; raise `SampleError` (``non_finite``)."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A network and its tokenizer, as loaded from one checkpoint."""

    network: Network
    tokenizer: Tokenizer
    digest: str
    label_names: tuple[str, ...] = ()


class OnDevice:
    """What the kinds with weights share: limits and the forward pass are their network's."""

    def __init__(self, spec: NeuralSpec, weights: Weights, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.limit: int | None = max_tokens(spec, weights)
        self.config: Any = weights.network.config
        self._network = weights.network

    @property
    def cost(self) -> BatchCost:
        """What a batch costs the network."""
        return self._network.cost

    @property
    def dtype(self) -> str | None:
        """The precision that the network computes in."""
        return str(self._network.dtype).removeprefix("torch.")

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to a batch's work, padding not counted."""
        return self._network.num_computed(batch)

    def forget(self) -> None:
        """Free what is remembered of batches before."""
        self._network.forget()

    def forward(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one batch."""
        with CONSTRUCTION.kept_out():
            return self._network.outputs(batch)


def max_tokens(spec: NeuralSpec, weights: Weights) -> int:
    """Return the most tokens a sample may have: the recipe's limit, else the checkpoint's."""
    config = weights.network.config
    positions = getattr(config, "max_position_embeddings", None) or 1 << 20
    if config.model_type in OFFSET_POSITIONS:
        positions -= int(config.pad_token_id) + 1
    if spec.max_tokens is None:
        return int(min(positions, weights.tokenizer.model_max_length))
    if spec.max_tokens > positions:
        raise RecipeError(
            f"max_tokens is {spec.max_tokens}, but {spec.checkpoint} has {positions} positions"
        )
    return spec.max_tokens


def require_finite(values: Sequence[float]) -> None:
    """Raise `SampleError` (``non_finite``) for a NaN or an infinity."""
    if not all(math.isfinite(value) for value in values):
        raise SampleError("non_finite", "the model gave a number that is not finite")


def require_outputs(network: Network, wanted: int, what: str) -> None:
    """Raise `CheckpointError` unless the network gives that many numbers a read."""
    if network.num_outputs != wanted:
        raise CheckpointError(
            f"{what} wants {wanted} logit{'s' * (wanted > 1)}, the checkpoint has "
            f"{network.num_outputs}; kind `multi-objective` reads any number"
        )
