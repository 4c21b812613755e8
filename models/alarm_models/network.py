"""A model on its device: a transformer, and the head that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LongformerModel,
    PreTrainedModel,
)

from alarm_models.checkpoint import read_head
from alarm_models.errors import CheckpointError
from alarm_models.features import BatchCost, Features
from alarm_models.heads import Head, Pooling, sequence_head, token_head
from alarm_models.padding import padded
from alarm_models.probing import Backbone, fastest_exact

__all__ = [
    "HeadedNetwork",
    "Network",
    "Source",
    "WholeNetwork",
    "base_with_head",
    "load_base",
    "sequence_classifier",
    "token_classifier",
]


class Network(Protocol):
    """Runs batches: token ids in, one row of outputs a read out."""

    config: Any
    dtype: torch.dtype
    num_outputs: int
    cost: BatchCost
    #: What a whole-sequence score reads; None where the recipe says.
    pooling: Pooling | None

    def outputs(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to the work, padding not counted."""


class HeadedNetwork:
    """A backbone that runs the fastest exact way, and a head on the states that are read."""

    def __init__(self, model: PreTrainedModel, backbone: Backbone, head: Head) -> None:
        self._backbone = backbone
        self._head = head
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = head.num_outputs
        self.cost: BatchCost = backbone.cost
        self.pooling = head.pooling

    @torch.inference_mode()
    def outputs(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""
        rows = self._head(self._backbone.rows(batch)).float().cpu()
        return list(torch.split(rows, [len(one.reads) for one in batch]))

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to the work, padding not counted."""
        return self._backbone.num_computed(batch)


class WholeNetwork:
    """A model that is run as transformers runs it, padded, head and all."""

    cost = BatchCost.PADDED

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = int(self._model.config.num_labels or 0)
        self.pooling: Pooling | None = Pooling.OWN

    @torch.inference_mode()
    def outputs(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one padded batch; a model of one row a token is read where the samples say."""
        logits = self._model(**padded(batch, self._model)).logits
        logits = logits.float().cpu()
        if logits.ndim == 2:  # [batch, outputs]
            return list(torch.split(logits, 1))
        return [  # [batch, tokens, outputs]
            torch.stack([logits[row, start:end].mean(0) for start, end in one.reads])
            for row, one in enumerate(batch)
        ]

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Every sample is computed whole."""
        return [one.num_tokens for one in batch]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a network comes from and how it is to run.

    ``max_remembered_bytes`` bounds what a causal model keeps of prompts for the batches after.
    """

    folder: Path
    dtype: torch.dtype
    device: torch.device
    trust_remote_code: bool = False
    max_remembered_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """A transformer without its head, which several heads may share."""

    model: PreTrainedModel
    backbone: Backbone


def sequence_classifier(source: Source) -> Network:
    """Load a one-logit sequence classifier.

    Where its head can be taken off, ours reads the states that the head reads, so that padding
    never moves it and packing is possible.
    """
    model = _load(AutoModelForSequenceClassification, source)
    if model.config.num_labels != 1:
        raise CheckpointError(
            f"{source.folder} has {model.config.num_labels} labels: no single score; kind "
            "`sequence` wants one logit"
        )
    return _with_head(model, sequence_head(model), source, has_global=True)


def token_classifier(source: Source) -> Network:
    """Load a token classifier: one row of logits a token."""
    model = _load(AutoModelForTokenClassification, source)
    return _with_head(model, token_head(model), source)


def load_base(source: Source) -> Base:
    """Load a base model, which several heads may share."""
    model = _load(AutoModel, source)
    return Base(model, _fastest(model, source))


def base_with_head(base: Base, source: Source, name: str) -> Network:
    """Put the linear head of that name on a base model, as openbmb/UltraRM-13b has."""
    linear = read_head(source.folder, name).to(device=source.device, dtype=source.dtype)
    return HeadedNetwork(base.model, base.backbone, Head(linear, linear.out_features, None))


def _with_head(
    model: PreTrainedModel, head: Head | None, source: Source, *, has_global: bool = False
) -> Network:
    if head is None:
        return WholeNetwork(model)
    base: Any = model.base_model
    has_global = has_global and isinstance(base, LongformerModel)
    return HeadedNetwork(base, _fastest(base, source, has_global=has_global), head)


def _fastest(model: PreTrainedModel, source: Source, *, has_global: bool = False) -> Backbone:
    return fastest_exact(
        model, has_global=has_global, max_remembered_bytes=source.max_remembered_bytes
    )


def _load(loader: Any, source: Source) -> PreTrainedModel:
    try:
        model, report = loader.from_pretrained(
            str(source.folder),
            dtype=source.dtype,
            trust_remote_code=source.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source.folder} cannot be loaded: {error}") from error
    # A tensor that the files lack would be random: never serve it. Poolers we do not read may lack.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{source.folder} lacks {len(missing)} tensors of {type(model).__name__} "
            f"({', '.join(missing[:3])}, ...): they would be random. Is the kind or `head` right?"
        )
    loaded: PreTrainedModel = model.to(source.device).eval()
    return loaded
