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

#: More tokens than any sample has.
_NO_LIMIT = 1 << 20

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
    positions = _num_positions(weights.network)
    if spec.max_tokens is None:
        return min(positions, weights.tokenizer.model_max_length)
    positions *= _scaling(weights.network)
    if spec.max_tokens > positions:
        raise RecipeError(
            f"max_tokens is {spec.max_tokens}, but {spec.checkpoint} has {positions} positions"
        )
    return spec.max_tokens


def _num_positions(network: Network) -> int:
    """Return what the configuration says, and no more than the tables have room for.

    Configurations say "no limit" in many ways: XLNet with -1, others with none or 0.
    """
    named = getattr(network.config, "max_position_embeddings", None)
    limits = (named if isinstance(named, int) else None, network.max_positions)
    return min((one for one in limits if one is not None and one > 0), default=_NO_LIMIT)


def _scaling(network: Network) -> int:
    """Return how many times its positions a model reads where a recipe asks: dynamic RoPE's."""
    scaling = getattr(network.config, "rope_parameters", None) or {}
    is_dynamic = network.max_positions is None and "dynamic" in str(scaling.get("rope_type"))
    return max(int(scaling.get("factor") or 1), 1) if is_dynamic else 1


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
