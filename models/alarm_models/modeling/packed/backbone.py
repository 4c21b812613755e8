"""The fast way to run a batch: samples end to end, without padding, shared beginnings once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.packed.attention import PACKED
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, forward_context, pack
from alarm_models.modeling.packed.longformer import PackedLongformer
from alarm_models.modeling.packed.positions import Lengths, first_position
from alarm_models.modeling.packed.prefix_cache import PrefixCache
from alarm_models.modeling.packed.varlen import VARLEN

__all__ = ["PackedBackbone"]


class PackedBackbone:
    """Runs a transformer without its head on packed rows.

    ``share`` is right for causal models alone. Samples longer than a model's sliding window do not
    share: their end would have to forget their beginning. ``is_trimmed`` says that the model's
    last layer gives only the states that are read; ``is_varlen`` has torch's variable-length
    kernel attend. Where ``max_remembered_bytes`` are given, shared beginnings are not even run
    again in later batches. Samples that ``lengths`` keeps apart have rows of their own, and share
    and remember nothing of each other. ``max_positions`` is how many tokens a sample may have.
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
        lengths: Lengths | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.is_trimmed = is_trimmed
        self.max_positions = max_positions
        self.cost = BatchLayout.PREFIX_SHARED if share else BatchLayout.PACKED
        if not isinstance(model, LongformerModel):
            model.set_attn_implementation(VARLEN if is_varlen else PACKED)
        self._model: Any = model
        self._share = share
        self._lengths = lengths or Lengths()
        # Beyond an open end each length has frequencies of its own: nothing to remember there.
        self._max_cache_bytes = max_remembered_bytes // max(self._lengths.num_classes, 1)
        self._prefix_caches = self._new_prefix_caches()
        self._last: tuple[Sequence[ModelInput], list[int]] | None = None
        self._longformer = (
            PackedLongformer(model, has_global=has_global, is_varlen=is_varlen)
            if isinstance(model, LongformerModel)
            else None
        )
        self._window = getattr(model.config.get_text_config(), "sliding_window", None)
        self._padding = first_position(model)

    @property
    def has_prefix_cache(self) -> bool:
        """Whether anything is kept for the batches after."""
        return bool(self._prefix_caches)

    def rows(self, batch: Sequence[ModelInput]) -> torch.Tensor:
        """Return the hidden states at each sample's reads, ``[reads of the batch, hidden]``."""
        num_computed = [0] * len(batch)
        rows: list[torch.Tensor] = [torch.empty(0)] * len(batch)
        for part in self._lengths.parts([one.num_tokens for one in batch]):
            some = [batch[index] for index in part]
            states, layout = self._run(some)
            found = torch.split(states, [len(one.read_positions) for one in some])
            for index, row, num in zip(part, found, layout.num_computed, strict=True):
                rows[index], num_computed[index] = row, num
        self._last = (batch, num_computed)
        return torch.cat(rows)

    def num_computed(self, batch: Sequence[ModelInput]) -> list[int]:
        """Return the tokens that each sample added to the work; who comes first brings the rest.

        Of the batch that ran last; of another, what it would add now.
        """
        if self._last is not None and self._last[0] is batch:
            return self._last[1]
        num_computed = [0] * len(batch)
        for part in self._lengths.parts([one.num_tokens for one in batch]):
            layout = self._pack([batch[index] for index in part])
            for index, num in zip(part, layout.num_computed, strict=True):
                num_computed[index] = num
        return num_computed

    def forget(self) -> None:
        """Free what is remembered of batches before; one that still runs adds nothing to it."""
        self._last = None
        for memory in self._prefix_caches.values():
            memory.clear()
        self._prefix_caches = self._new_prefix_caches()

    def _new_prefix_caches(self) -> dict[int, PrefixCache]:
        num = self._lengths.num_classes if self._share and self._max_cache_bytes else 0
        return {number: PrefixCache(self._max_cache_bytes) for number in range(num)}

    def _run(self, batch: Sequence[ModelInput]) -> tuple[torch.Tensor, PackedBatch]:
        """Run samples of one class of lengths in one row."""
        spans = [(index, span) for index, one in enumerate(batch) for span in one.read_positions]
        layout = self._pack(batch)
        memory = self._prefix_cache(batch)
        row = ForwardContext(
            layout,
            [(index, at) for index, span in spans for at in range(*span)],
            [place for index, span in spans for place in layout.positions_in_batch(index, span)],
            is_cached=memory is not None,
        )
        try:
            states = self._states(row)  # [tokens read, hidden]
        except torch.OutOfMemoryError:
            self.forget()
            raise
        if memory is not None:
            memory.insert(
                row.to_cached_batch([one.ids for one in batch], [one.owner for one in batch])
            )
        lengths = [span.end - span.start for _, span in spans]
        if len(states) != len(lengths):
            states = torch.stack([part.mean(0) for part in torch.split(states, lengths)])
        return states, layout

    def _prefix_cache(self, batch: Sequence[ModelInput]) -> PrefixCache | None:
        """Return what samples of one class of lengths recall from, and are remembered in."""
        if any(one.token_type_ids for one in batch) or not self._fits_window(batch):
            return None
        return self._prefix_caches.get(self._lengths.of(batch[0].num_tokens))

    def _fits_window(self, batch: Sequence[ModelInput]) -> bool:
        return self._window is None or max(one.num_tokens for one in batch) <= self._window

    def _pack(self, batch: Sequence[ModelInput]) -> PackedBatch:
        share = self._share and self._fits_window(batch)
        if any(one.token_type_ids for one in batch):
            typed = [tuple(zip(one.ids, one.token_type_ids, strict=True)) for one in batch]
            return pack(typed, share=share, owners=[one.owner for one in batch])
        return pack(
            [one.ids for one in batch],
            share=share,
            memory=self._prefix_cache(batch),
            first_reads=[
                min((span.start for span in one.read_positions), default=0) for one in batch
            ],
            owners=[one.owner for one in batch],
        )

    def _states(self, row: ForwardContext) -> torch.Tensor:
        device = self._model.device
        # [1, tokens], or with token types [1, tokens, 2]
        ids, types = torch.tensor([row.batch.ids], device=device), {}
        if ids.ndim == 3:
            ids, types = ids[..., 0], {"token_type_ids": ids[..., 1]}
        positions = torch.tensor([self._positions(ids[0], row.batch)], device=device)
        self._lengths.begin()
        with forward_context(row):
            if self._longformer is not None:
                return self._longformer(ids, positions, row)[0]
            states: torch.Tensor = self._model(
                input_ids=ids, position_ids=positions, **types
            ).last_hidden_state[0]
        return states if self.is_trimmed else states[row.read_places]

    def _positions(self, ids: torch.Tensor, layout: PackedBatch) -> list[int]:
        if self._padding is None:
            return layout.positions
        positions = []
        for run in layout.nodes:
            place = self._padding
            for token in ids[slice(*run.row)].tolist():
                place += token != self._padding
                positions.append(self._padding if token == self._padding else place)
        return positions
