"""Longformer over a packed batch: exact sliding-window attention, no padding to the window."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LongformerModel

from alarm_models.modeling.packed.attention import (
    AttentionBackend,
    attend_reads,
    refuse_shared_prefixes,
)
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.sdpa import AttentionParams, Window, attend

__all__ = ["PackedLongformer"]


class PackedLongformer:
    """Runs a Longformer's weights over packed samples.

    A token attends to ``attention_window / 2`` tokens on each side within its sample, which is what
    transformers computes in overlapping chunks padded to the window. With ``has_global`` each
    sample's first token has global attention with separate projections, as in Longformers that
    classify whole sequences (Beltagy et al. 2020, section 3.1).
    """

    def __init__(
        self, model: LongformerModel, backend: AttentionBackend, *, has_global: bool
    ) -> None:
        self._model: Any = model
        self._backend = backend
        self._has_global = has_global

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, context: ForwardContext
    ) -> torch.Tensor:
        """Return the last hidden states of the batch's reads, ``[1, reads, hidden]``.

        ``ids`` and ``positions`` are ``[1, tokens]``. The last layer is computed only for the
        reads.
        """
        refuse_shared_prefixes(context)
        states = self._model.embeddings(input_ids=ids, position_ids=positions)
        *layers, last = self._model.encoder.layer
        for layer in layers:
            attended = self._attend(layer.attention.self, states, context)
            states = _after_attention(layer, attended, states)
        attended = self._attend_for_reads(last.attention.self, states, context)
        return _after_attention(last, attended, states[:, context.read_places])

    def _attend(self, weights: Any, states: torch.Tensor, context: ForwardContext) -> torch.Tensor:
        query, key, value = (
            _heads(project(states), weights.num_heads)
            for project in (weights.query, weights.key, weights.value)
        )
        side = weights.one_sided_attn_window_size
        window = Window(side, side, self._has_global)
        params = AttentionParams(weights.head_dim**-0.5, causal=False, window=window)
        attended = self._backend.attend(query, key, value, context, params)
        out = attended.flatten(2)  # [1, tokens, hidden]
        if self._has_global:
            self._attend_globally(weights, states, _heads(out, weights.num_heads), context.batch)
        return out

    def _attend_for_reads(
        self, weights: Any, states: torch.Tensor, context: ForwardContext
    ) -> torch.Tensor:
        if not self._has_global:
            query, key, value = (
                _heads(project(of), weights.num_heads)
                for project, of in (
                    (weights.query, states[:, context.read_places]),
                    (weights.key, states),
                    (weights.value, states),
                )
            )
            scale, window = weights.head_dim**-0.5, weights.one_sided_attn_window_size + 1
            attended = attend_reads(
                weights, query, key, value, scale=scale, causal=False, window=window
            )
            return attended.flatten(2)
        if any(place > 0 for _, place in context.reads):
            return self._attend(weights, states, context)[:, context.read_places]
        out = torch.empty_like(states)
        self._attend_globally(weights, states, _heads(out, weights.num_heads), context.batch)
        return out[:, context.read_places]

    def _attend_globally(
        self, weights: Any, states: torch.Tensor, target: torch.Tensor, batch: PackedBatch
    ) -> None:
        key, value = (
            _heads(project(states), weights.num_heads)
            for project in (weights.key_global, weights.value_global)
        )
        scale = weights.head_dim**-0.5
        firsts = [node.row.start for node in batch.nodes]
        queries = _heads(weights.query_global(states[:, firsts]), weights.num_heads)
        parts = [
            attend(queries[:, :, at : at + 1], key[:, :, rows], value[:, :, rows], scale).out
            for at, rows in enumerate(slice(*node.row) for node in batch.nodes)
        ]
        target[:, :, firsts] = torch.cat(parts, 2)


def _after_attention(layer: Any, attended: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Compute the rest of a layer after its attention; ``[1, tokens, hidden]`` each."""
    attended = layer.attention.output(attended, states)
    output: torch.Tensor = layer.output(layer.intermediate(attended), attended)
    return output


def _heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """View ``[1, tokens, hidden]`` as ``[1, heads, tokens, dim]``."""
    return states.view(*states.shape[:2], num_heads, -1).transpose(1, 2)
