"""The padded backbone: samples side by side, padded to the longest, or each alone.

It runs a model as transformers alone would, and is what faster backbones are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from alarm_models.modeling.inputs import BatchLayout, ModelInput, ReadStates
from alarm_models.modeling.packed.positions import Lengths, ModuleState

__all__ = ["PaddedBackbone", "PaddingPolicy", "pad_batch"]


@dataclass(frozen=True, slots=True)
class PaddingPolicy:
    """Which samples of a batch a model may be given at once, so that none changes another's score.

    ``is_padded`` says that padding changes nothing. ``lengths`` keeps apart what position scaling
    would mix; ``state`` is put back before each pass of a model that passes change.
    """

    is_padded: bool = True
    lengths: Lengths = field(default_factory=Lengths)
    state: ModuleState | None = None

    @property
    def cost(self) -> BatchLayout:
        """What a batch costs."""
        return BatchLayout.PADDED if self.is_padded else BatchLayout.SINGLE

    def run(
        self,
        batch: Sequence[ModelInput],
        forward: Callable[[Sequence[ModelInput]], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """Return what a forward pass gives each sample, in order, in as many passes as it takes."""
        parts = [[index] for index in range(len(batch))]
        if self.is_padded:
            parts = self.lengths.parts([one.num_tokens for one in batch])
        given: dict[int, torch.Tensor] = {}
        for part in parts:
            self.lengths.begin()
            if self.state is not None:
                self.state.restore()
            given |= zip(part, forward([batch[index] for index in part]), strict=True)
        return [given[index] for index in range(len(batch))]


class PaddedBackbone:
    """Runs a transformer without its head on padded batches, as transformers alone would.

    ``has_global`` gives a Longformer's first token its view of the whole sample; ``padding`` says
    what may be run at once, and ``max_positions`` how many tokens a sample may have.
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
        self.cost = self._padding.cost
        self.name = self.cost.value
        self.max_positions = max_positions

    def forward(self, batch: Sequence[ModelInput]) -> ReadStates:
        """Return the hidden states at each sample's reads; every token is computed."""
        states = self._padding.run(batch, self.run_padded)
        return ReadStates(torch.cat(states), [one.num_tokens for one in batch])

    def run_padded(self, batch: Sequence[ModelInput]) -> list[torch.Tensor]:
        """Run samples in one padded pass; return each one's states, ``[reads, hidden]``."""
        inputs = pad_batch(batch, self._model)
        if self._has_global:
            seen_by_all = torch.zeros_like(inputs["input_ids"])
            seen_by_all[:, 0] = 1
            inputs["global_attention_mask"] = seen_by_all
        states = self._model(**inputs).last_hidden_state  # [batch, tokens, hidden]
        return [
            torch.stack([states[row, start:end].mean(0) for start, end in one.read_positions])
            for row, one in enumerate(batch)
        ]

    def clear_prefix_cache(self) -> None:
        """Do nothing: there is none."""


def pad_batch(batch: Sequence[ModelInput], model: Any) -> dict[str, torch.Tensor]:
    """Pad samples on the right; return a model's inputs, ``[batch, tokens]`` each."""
    config = model.config.get_text_config()
    # Padding is masked: any id will do that the embedding holds.
    pad = config.pad_token_id
    vocabulary = getattr(config, "vocab_size", None) or 1  # CANINE hashes characters: it has none
    pad = pad if isinstance(pad, int) and 0 <= pad < int(vocabulary) else 0
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
