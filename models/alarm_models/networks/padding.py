"""The plain way to run a batch: samples side by side, padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.features import BatchCost, Features

__all__ = ["PaddedBackbone", "padded"]


class PaddedBackbone:
    """Runs a transformer without its head on padded batches, as transformers alone would.

    ``has_global`` gives a Longformer's first token its view of the whole sample.
    """

    cost = BatchCost.PADDED

    def __init__(self, model: PreTrainedModel, *, has_global: bool = False) -> None:
        self._model: Any = model
        self._has_global = has_global

    def rows(self, batch: Sequence[Features]) -> torch.Tensor:
        """Return the hidden states at each sample's reads, ``[reads of the batch, hidden]``."""
        inputs = padded(batch, self._model)
        if self._has_global:
            seen_by_all = torch.zeros_like(inputs["input_ids"])
            seen_by_all[:, 0] = 1
            inputs["global_attention_mask"] = seen_by_all
        states = self._model(**inputs).last_hidden_state  # [batch, tokens, hidden]
        reads = [(row, *span) for row, one in enumerate(batch) for span in one.reads]
        return torch.stack([states[row, start:end].mean(0) for row, start, end in reads])

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to the work: every sample is computed whole."""
        return [one.num_tokens for one in batch]

    def forget(self) -> None:
        """Remember nothing, as ever."""


def padded(batch: Sequence[Features], model: Any) -> dict[str, torch.Tensor]:
    """Pad samples on the right; return a model's inputs, ``[batch, tokens]`` each."""
    config = model.config.get_text_config()
    # Padding is masked: any id will do that the embedding holds.
    pad = config.pad_token_id
    pad = pad if isinstance(pad, int) and 0 <= pad < int(config.vocab_size) else 0
    longest = max(one.num_tokens for one in batch)
    inputs = {
        "input_ids": [[*one.ids, *[pad] * (longest - one.num_tokens)] for one in batch],
        "attention_mask": [
            [1] * one.num_tokens + [0] * (longest - one.num_tokens) for one in batch
        ],
    }
    if any(one.types for one in batch):
        inputs["token_type_ids"] = [
            [*one.types, *[0] * (longest - len(one.types))] for one in batch
        ]
    return {name: torch.tensor(rows, device=model.device) for name, rows in inputs.items()}
