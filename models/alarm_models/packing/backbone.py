"""The fast way to run a batch: samples end to end, without padding, shared beginnings once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.features import BatchCost, Features
from alarm_models.packing.attention import PACKED
from alarm_models.packing.laying import lay_out
from alarm_models.packing.layout import Layout
from alarm_models.packing.longformer import PackedLongformer
from alarm_models.packing.memory import Memory
from alarm_models.packing.row import Row, running
from alarm_models.packing.varlen import VARLEN

__all__ = ["OFFSET_POSITIONS", "PackedBackbone"]

#: Model types whose position ids begin past the padding id, and pass over it.
OFFSET_POSITIONS = {"roberta", "longformer", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"}


class PackedBackbone:
    """Runs a transformer without its head on packed rows.

    ``share`` is right for causal models alone. Samples longer than a model's sliding window do not
    share: their end would have to forget their beginning. ``is_trimmed`` says that the model's
    last layer gives only the states that are read; ``is_varlen`` has torch's variable-length
    kernel attend. Where ``max_remembered_bytes`` are given, shared beginnings are not even run
    again in later batches.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        share: bool,
        is_trimmed: bool = False,
        has_global: bool = False,
        is_varlen: bool = False,
        max_remembered_bytes: int = 0,
    ) -> None:
        self.is_trimmed = is_trimmed
        self.cost = BatchCost.SHARED if share else BatchCost.PACKED
        if not isinstance(model, LongformerModel):
            model.set_attn_implementation(VARLEN if is_varlen else PACKED)
        self._model: Any = model
        self._share = share
        self._max_remembered_bytes = max_remembered_bytes
        self._memory = Memory(max_remembered_bytes) if share and max_remembered_bytes else None
        self._last: tuple[Sequence[Features], Layout] | None = None
        self._longformer = (
            PackedLongformer(model, has_global=has_global, is_varlen=is_varlen)
            if isinstance(model, LongformerModel)
            else None
        )
        config = model.config.get_text_config()
        self._window = getattr(config, "sliding_window", None)
        self._padding = config.pad_token_id if config.model_type in OFFSET_POSITIONS else None

    def rows(self, batch: Sequence[Features]) -> torch.Tensor:
        """Return the hidden states at each sample's reads, ``[reads of the batch, hidden]``."""
        spans = [(index, span) for index, one in enumerate(batch) for span in one.reads]
        memory = self._memory
        layout = self._lay_out(batch)
        row = Row(
            layout,
            [(index, at) for index, span in spans for at in range(*span)],
            [place for index, span in spans for place in layout.places(index, span)],
            is_remembered=self._remembers(batch),
        )
        try:
            states = self._states(row)  # [tokens read, hidden]
        except torch.OutOfMemoryError:
            self.forget()
            raise
        self._last = (batch, layout)
        if memory is not None and row.is_remembered:
            memory.remember(row.past([one.ids for one in batch], [one.owner for one in batch]))
        lengths = [span.end - span.start for _, span in spans]
        if len(states) == len(lengths):
            return states
        return torch.stack([part.mean(0) for part in torch.split(states, lengths)])

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample added to the work; who comes first brings the rest.

        Of the batch that ran last; of another, what it would add now.
        """
        if self._last is not None and self._last[0] is batch:
            return self._last[1].num_computed
        return self._lay_out(batch).num_computed

    def forget(self) -> None:
        """Free what is remembered of batches before; one that still runs adds nothing to it."""
        self._last = None
        if self._memory is not None:
            self._memory.forget()
            self._memory = Memory(self._max_remembered_bytes)

    def _remembers(self, batch: Sequence[Features]) -> bool:
        is_typed = any(one.types for one in batch)
        return self._memory is not None and not is_typed and self._fits_window(batch)

    def _fits_window(self, batch: Sequence[Features]) -> bool:
        return self._window is None or max(one.num_tokens for one in batch) <= self._window

    def _lay_out(self, batch: Sequence[Features]) -> Layout:
        share = self._share and self._fits_window(batch)
        if any(one.types for one in batch):
            typed = [tuple(zip(one.ids, one.types, strict=True)) for one in batch]
            return lay_out(typed, share=share, owners=[one.owner for one in batch])
        return lay_out(
            [one.ids for one in batch],
            share=share,
            memory=self._memory if share else None,
            first_reads=[min((span.start for span in one.reads), default=0) for one in batch],
            owners=[one.owner for one in batch],
        )

    def _states(self, row: Row) -> torch.Tensor:
        device = self._model.device
        # [1, tokens], or with token types [1, tokens, 2]
        ids, types = torch.tensor([row.layout.ids], device=device), {}
        if ids.ndim == 3:
            ids, types = ids[..., 0], {"token_type_ids": ids[..., 1]}
        positions = torch.tensor([self._positions(ids[0], row.layout)], device=device)
        with running(row):
            if self._longformer is not None:
                return self._longformer(ids, positions, row)[0]
            states: torch.Tensor = self._model(
                input_ids=ids, position_ids=positions, **types
            ).last_hidden_state[0]
        return states if self.is_trimmed else states[row.places]

    def _positions(self, ids: torch.Tensor, layout: Layout) -> list[int]:
        if self._padding is None:
            return layout.positions
        positions = []
        for run in layout.runs:
            place = self._padding
            for token in ids[slice(*run.row)].tolist():
                place += token != self._padding
                positions.append(self._padding if token == self._padding else place)
        return positions
