"""A model on its device: a transformer, and the head that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.backend_selection import Backbone, probe_padding
from alarm_models.modeling.heads import Head, Pooling
from alarm_models.modeling.inputs import (
    BatchLayout,
    ForwardOutput,
    ModelInput,
    split_sequences,
    sum_by_sample,
)
from alarm_models.modeling.padded import pad_batch

__all__ = ["HeadedNetwork", "Network", "WholeNetwork"]


class Network(Protocol):
    """Runs batches: token sequences in, one row of outputs a read position out."""

    config: Any
    dtype: torch.dtype
    num_outputs: int
    cost: BatchLayout
    #: What a whole-sequence score reads; None where the recipe says.
    pooling: Pooling | None
    #: How many tokens its tables of positions have room for; None without any.
    max_positions: int | None

    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""


class HeadedNetwork:
    """A backbone that runs the fastest exact way, and a head on the states that are read."""

    def __init__(self, model: PreTrainedModel, backbone: Backbone, head: Head) -> None:
        self._backbone = backbone
        self._head = head
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = head.num_outputs
        self.cost: BatchLayout = backbone.cost
        self.pooling = head.pooling
        self.max_positions = backbone.max_positions

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch."""
        states, num_computed = self._backbone.forward(split_sequences(batch))
        rows = self._head(states).float().cpu()
        return ForwardOutput(
            torch.split(rows, [one.num_reads for one in batch]), sum_by_sample(batch, num_computed)
        )

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""
        self._backbone.clear_prefix_cache()


class WholeNetwork:
    """A model that is run as transformers runs it, head and all: padded, where that is exact.

    ``select`` makes outputs of the logits at the reads, where those are not the outputs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        select: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> None:
        self._model: Any = model
        self._select = select
        self.config: Any = model.config.get_text_config()
        self.dtype = model.dtype
        self.num_outputs = int(self._model.config.num_labels or 0)
        self.pooling: Pooling | None = Pooling.OWN
        self._padding, self.max_positions = probe_padding(model, self._run_padded)
        self.cost = self._padding.cost

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ForwardOutput:
        """Run one batch; a model of one row a token is read where the samples say."""
        rows = iter(self._padding.run(split_sequences(batch), self._run_padded))
        by_sample = [[next(rows) for _ in one.ids_of_sequences] for one in batch]
        return ForwardOutput(
            [own[0] if len(own) == 1 else torch.cat(own) for own in by_sample],
            [one.num_tokens for one in batch],
        )

    def _run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        logits = self._model(**pad_batch(batch, self._model)).logits
        if logits.ndim == 2:  # [batch, outputs]
            return list(torch.split(logits.float().cpu(), 1))
        return [  # [batch, tokens, outputs]
            self._select(
                torch.stack([logits[row, start:end].mean(0) for start, end in one.read_positions])
            )
            .float()
            .cpu()
            for row, one in enumerate(batch)
        ]

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is none."""
