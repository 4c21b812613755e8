"""The padded backbone: samples side by side, padded to the longest, or each alone.

It runs a model as plain transformers does, and is the reference for faster backbones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.inputs import BatchLayout, ModelInput, ReadStates
from alarm_models.modeling.kernels.library import NO_KERNELS
from alarm_models.modeling.linear_kernels import PLAIN
from alarm_models.modeling.packed.positions import Lengths, ModuleState

__all__ = ["PaddedBackbone", "PaddingPolicy", "pad_batch", "pad_token_id"]


@dataclass(frozen=True, slots=True)
class PaddingPolicy:
    """Which samples of a batch may run together without affecting each other's scores.

    ``is_padded`` is true if padding does not change outputs. ``lengths`` separates samples that
    position scaling would treat differently together; ``state`` is restored before each pass, for
    models whose passes change it.
    """

    is_padded: bool = True
    lengths: Lengths = field(default_factory=Lengths)
    state: ModuleState | None = None

    @property
    def cost(self) -> BatchLayout:
        """The layout that determines the cost of a batch."""
        return BatchLayout.PADDED if self.is_padded else BatchLayout.SINGLE

    @property
    def is_stateful(self) -> bool:
        """Whether a pass changes the model, so that no two may run at once."""
        return self.state is not None or self.lengths.is_stateful

    def run(
        self,
        batch: Sequence[ModelInput],
        forward: Callable[[Sequence[ModelInput]], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """Return each sample's outputs, in order, from as many forward passes as needed."""
        parts = [[index] for index in range(len(batch))]
        if self.is_padded:
            parts = self.lengths.parts([one.num_tokens for one in batch])
        outputs: dict[int, torch.Tensor] = {}
        for part in parts:
            self.lengths.begin()
            if self.state is not None:
                self.state.restore()
            outputs |= zip(part, forward([batch[index] for index in part]), strict=True)
        return [outputs[index] for index in range(len(batch))]


class PaddedBackbone:
    """Runs a transformer without its head on padded batches, as plain transformers does.

    ``has_global`` gives a Longformer's first token global attention. ``padding`` determines which
    samples run together; ``max_positions`` is the maximum number of tokens of a sample.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        has_global: bool = False,
        padding: PaddingPolicy | None = None,
        max_positions: int | None = None,
    ) -> None:
        self._model: Any = model
        self._has_global = has_global
        self._padding = padding or PaddingPolicy()
        self.stateful = model if self._padding.is_stateful else None
        self.cost = self._padding.cost
        self.name = self.cost.value
        self.kernels = f"linear={PLAIN} fused={NO_KERNELS}"
        self.max_positions = max_positions

    def forward(self, batch: Sequence[ModelInput]) -> ReadStates:
        """Return the hidden states at each sample's reads; every token is computed."""
        states = self._padding.run(batch, self.run_padded)
        return ReadStates(torch.cat(states), [one.num_tokens for one in batch])

    def run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        """Run samples in one padded pass; return the states of each, ``[reads, hidden]``."""
        inputs = pad_batch(batch, self._model)
        if self._has_global:
            global_mask = torch.zeros_like(inputs["input_ids"])
            global_mask[:, 0] = 1
            inputs["global_attention_mask"] = global_mask
        states = self._model(**inputs).last_hidden_state  # [batch, tokens, hidden]
        return [
            torch.stack([states[row, start:end].mean(0) for start, end in one.read_positions])
            for row, one in enumerate(batch)
        ]

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is no prefix cache."""


def pad_token_id(config: Any) -> int | None:
    """Return the padding id of a configuration; a custom or old one may have no such key."""
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) else None


def pad_batch(batch: Sequence[ModelInput], model: Any) -> dict[str, torch.Tensor]:
    """Pad samples on the right; return the model's inputs, ``[batch, tokens]`` each."""
    config = model.config.get_text_config()
    # Padding is masked, so any id within the vocabulary works.
    pad = pad_token_id(config)
    # CANINE hashes characters and has no vocabulary.
    vocabulary = getattr(config, "vocab_size", None) or 1
    pad = pad if pad is not None and 0 <= pad < int(vocabulary) else 0
    longest = max(one.num_tokens for one in batch)
    inputs = {
        "input_ids": [[*one.ids, *[pad] * (longest - one.num_tokens)] for one in batch],
        "attention_mask": [
            [1] * one.num_tokens + [0] * (longest - one.num_tokens) for one in batch
        ],
    }
    if any(one.token_type_ids for one in batch):
        inputs["token_type_ids"] = [
            [*one.token_type_ids, *[0] * (longest - len(one.token_type_ids))] for one in batch
        ]
    return {name: torch.tensor(rows, device=model.device) for name, rows in inputs.items()}
