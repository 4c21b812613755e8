"""The packed backbone: samples end to end without padding, prefill of shared prefixes once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.modeling.inputs import BatchLayout, ModelInput, ReadStates
from alarm_models.modeling.kernels.library import NO_KERNELS
from alarm_models.modeling.linear_kernels import PLAIN
from alarm_models.modeling.packed.attention import AttentionBackend, use_attention_backend
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, forward_context, pack
from alarm_models.modeling.packed.longformer import PackedLongformer
from alarm_models.modeling.packed.positions import Lengths, first_position
from alarm_models.modeling.packed.prefix_cache import (
    BatchKV,
    CachedBatch,
    PrefixCache,
    PrefixCaches,
)

__all__ = ["PackedBackbone"]


class PackedBackbone:
    """Runs a transformer without its head on packed batches.

    ``share`` enables prefix sharing, which is valid for causal models only. Samples longer than a
    model's sliding window do not share prefixes, because their last tokens no longer attend to
    them. ``is_pruned`` is true if the model's last layer returns only the states that are read.
    With ``prefix_cache_bytes``, prefixes of earlier batches are reused. Samples in different
    classes of ``lengths`` run in separate batches and share no prefix, cached or not.
    ``max_positions`` is the maximum number of tokens of a sample.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        backend: AttentionBackend,
        *,
        share: bool,
        is_pruned: bool = False,
        has_global: bool = False,
        prefix_cache_bytes: int = 0,
        lengths: Lengths | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.name = backend.name
        self.kernels = f"linear={PLAIN} fused={NO_KERNELS}"
        self.is_pruned = is_pruned
        self.max_positions = max_positions
        self.cost = BatchLayout.PREFIX_SHARED if share else BatchLayout.PACKED
        self._model: Any = model
        self._share = share
        self._lengths = lengths or Lengths()
        self.stateful = model if self._lengths.is_stateful else None
        self._prefix_caches = PrefixCaches(
            prefix_cache_bytes if share else 0, self._lengths, pooled=model.device.type == "cpu"
        )
        self._longformer: PackedLongformer | None = None
        if isinstance(model, LongformerModel):
            self._longformer = PackedLongformer(model, backend, has_global=has_global)
        else:
            use_attention_backend(model, backend)
        # Custom configurations may name it otherwise: what is too large is then noticed later.
        self._num_layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
        # An unused window may also be 0 (Qwen2-MoE).
        self._window = getattr(model.config.get_text_config(), "sliding_window", None) or None
        self._padding = first_position(model)
        #: The sliding windows that attention layers were called with so far.
        self.windows: set[int] = set()

    @property
    def has_prefix_cache(self) -> bool:
        """Whether keys and values are cached for later batches."""
        return bool(self._prefix_caches)

    @torch.inference_mode()
    def forward(self, batch: Sequence[ModelInput]) -> ReadStates:
        """Return the hidden states at each sample's reads."""
        num_computed = [0] * len(batch)
        rows: list[torch.Tensor] = [torch.empty(0)] * len(batch)
        for part in self._lengths.parts([one.num_tokens for one in batch]):
            some = [batch[index] for index in part]
            states, packed = self._run(some)
            found = torch.split(states, [len(one.read_positions) for one in some])
            for index, row, num in zip(part, found, packed.num_computed, strict=True):
                rows[index], num_computed[index] = row, num
        return ReadStates(torch.cat(rows), num_computed)

    def clear_prefix_cache(self) -> None:
        """Clear the prefix cache; a batch that is still running adds nothing to it."""
        self._prefix_caches.clear()

    def _run(self, batch: Sequence[ModelInput]) -> tuple[torch.Tensor, PackedBatch]:
        """Run samples of one length class in one row."""
        cache = self._prefix_caches.select(batch) if self._fits_window(batch) else None
        packed = self._pack(batch, cache)
        spans = [(index, span) for index, one in enumerate(batch) for span in one.read_positions]
        context = ForwardContext(
            packed,
            [(index, at) for index, span in spans for at in range(*span)],
            [
                place
                for index, one in enumerate(batch)
                for place in packed.positions_in_batch(index, one.read_positions)
            ],
            None if cache is None else BatchKV(packed.cached, cache.allocate, self._num_layers),
        )
        try:
            states = self._states(context)  # [tokens read, hidden]
        except torch.OutOfMemoryError:
            self.clear_prefix_cache()
            raise
        if cache is not None and context.kv is not None:
            ids, owners = [one.ids for one in batch], [one.owner for one in batch]
            kv = context.kv
            cache.insert(CachedBatch(ids, packed.key_spans, kv.layers, owners, kv.blocks))
        self.windows |= context.windows
        lengths = [span.end - span.start for _, span in spans]
        if len(states) != len(lengths):
            states = torch.stack([part.mean(0) for part in torch.split(states, lengths)])
        return states, packed

    def _fits_window(self, batch: Sequence[ModelInput]) -> bool:
        return self._window is None or max(one.num_tokens for one in batch) <= self._window

    def _pack(self, batch: Sequence[ModelInput], cache: PrefixCache | None) -> PackedBatch:
        share = self._share and self._fits_window(batch)
        owners = [one.owner for one in batch]
        if any(one.token_type_ids for one in batch):
            typed = [tuple(zip(one.ids, one.token_type_ids, strict=True)) for one in batch]
            return pack(typed, share=share, owners=owners)
        return pack(
            [one.ids for one in batch],
            share=share,
            prefix_cache=cache,
            first_reads=[
                min((span.start for span in one.read_positions), default=0) for one in batch
            ],
            owners=owners,
        )

    def _states(self, context: ForwardContext) -> torch.Tensor:
        device = self._model.device
        # [1, tokens], or with token types [1, tokens, 2]
        ids, types = torch.tensor([context.batch.ids], device=device), {}
        if ids.ndim == 3:
            ids, types = ids[..., 0], {"token_type_ids": ids[..., 1]}
        positions = torch.tensor([self._positions(ids[0], context.batch)], device=device)
        self._lengths.begin()
        with forward_context(context):
            if self._longformer is not None:
                return self._longformer(ids, positions, context)[0]
            states: torch.Tensor = self._model(
                input_ids=ids, position_ids=positions, **types
            ).last_hidden_state[0]
        return states if self.is_pruned else states[context.read_places]

    def _positions(self, ids: torch.Tensor, packed: PackedBatch) -> list[int]:
        if self._padding is None:
            return packed.positions
        positions = []
        for node in packed.nodes:
            place = self._padding
            for token in ids[slice(*node.row)].tolist():
                place += token != self._padding
                positions.append(self._padding if token == self._padding else place)
        return positions
