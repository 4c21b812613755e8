"""A model on its device: a transformer, and the head that reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.backend_selection import Backbone, plain_way
from alarm_models.modeling.heads import Head, Pooling
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.padded import pad_batch

__all__ = ["HeadedNetwork", "Network", "WholeNetwork"]


class Network(Protocol):
    """Runs batches: token ids in, one row of outputs a read out."""

    config: Any
    dtype: torch.dtype
    num_outputs: int
    cost: BatchLayout
    #: What a whole-sequence score reads; None where the recipe says.
    pooling: Pooling | None
    #: How many tokens its tables of positions have room for; None without any.
    max_positions: int | None

    def outputs(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        """Run one batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""

    def num_computed(self, batch: Sequence[ModelInput]) -> list[int]:
        """Return the tokens that each sample adds to the work, padding not counted."""

    def forget(self) -> None:
        """Free what is remembered of batches before."""


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
    def outputs(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        """Run one batch; return float32 rows on the CPU, ``[reads, outputs]`` a sample."""
        rows = self._head(self._backbone.rows(batch)).float().cpu()
        return list(torch.split(rows, [len(one.read_positions) for one in batch]))

    def num_computed(self, batch: Sequence[ModelInput]) -> list[int]:
        """Return the tokens that each sample adds to the work, padding not counted."""
        return self._backbone.num_computed(batch)

    def forget(self) -> None:
        """Free what is remembered of batches before."""
        self._backbone.forget()


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
        way = plain_way(model, self._forward)
        self._together = way.together
        self.cost = way.together.cost
        self.max_positions = way.max_positions

    @torch.inference_mode()
    def outputs(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        """Run one batch; a model of one row a token is read where the samples say."""
        return self._together.run(batch, self._forward)

    def _forward(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
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

    def num_computed(self, batch: Sequence[ModelInput]) -> list[int]:
        """Every sample is computed whole."""
        return [one.num_tokens for one in batch]

    def forget(self) -> None:
        """Remember nothing, as ever."""
