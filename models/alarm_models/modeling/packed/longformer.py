"""Longformer over a row of packed samples: exact banded attention, no padding to the window."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LongformerModel

from alarm_models.modeling.packed.attention import attend_reads
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.kernels import Window, attend, attend_blocks, window_blocks
from alarm_models.modeling.packed.varlen import attend_within, varlen_batches

__all__ = ["PackedLongformer"]


class PackedLongformer:
    """Runs a Longformer's own weights over packed samples.

    A token sees ``attention_window / 2`` tokens on each side of its own sample, which is what
    transformers computes in overlapping chunks padded to the window. With ``has_global`` each
    sample's first token sees all of it, through projections of its own, and is seen by all: so do
    Longformers that classify whole sequences (Beltagy et al. 2020, section 3.1). Without,
    ``is_varlen`` attends by one kernel call a layer.
    """

    def __init__(
        self, model: LongformerModel, *, has_global: bool, is_varlen: bool = False
    ) -> None:
        self._model: Any = model
        self._has_global = has_global
        self._is_varlen = is_varlen and not has_global

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, row: ForwardContext
    ) -> torch.Tensor:
        """Return the last hidden states of the row's reads, ``[1, reads, hidden]``.

        ``ids`` and ``positions`` are ``[1, tokens]``; the row is the one that is running. The last
        layer attends and goes on for the reads alone.
        """
        states = self._model.embeddings(input_ids=ids, position_ids=positions)
        *layers, last = self._model.encoder.layer
        for layer in layers:
            attended = self._attend(layer.attention.self, states, row)
            states = _finished(layer, attended, states)
        attended = self._attend_for_reads(last.attention.self, states, row)
        return _finished(last, attended, states[:, row.read_places])

    def _attend(self, weights: Any, states: torch.Tensor, row: ForwardContext) -> torch.Tensor:
        query, key, value = (
            _heads(project(states), weights.num_heads)
            for project in (weights.query, weights.key, weights.value)
        )
        side, scale = weights.one_sided_attn_window_size, weights.head_dim**-0.5
        if self._is_varlen:
            levels = row.cached(varlen_batches, states.device)
            within = attend_within(query, key, value, levels, scale, (side, side))
            return within.transpose(1, 2).flatten(2)
        out = query.new_empty(states.shape)  # [1, tokens, hidden]
        target = _heads(out, weights.num_heads)
        band = Window(side, side, self._has_global)
        blocks = row.cached(window_blocks, query.device, query.dtype, band)
        attend_blocks(query, key, value, target, scale, blocks)
        if self._has_global:
            self._attend_globally(weights, states, target, row.batch)
        return out

    def _attend_for_reads(
        self, weights: Any, states: torch.Tensor, row: ForwardContext
    ) -> torch.Tensor:
        if not self._has_global:
            query, key, value = (
                _heads(project(of), weights.num_heads)
                for project, of in (
                    (weights.query, states[:, row.read_places]),
                    (weights.key, states),
                    (weights.value, states),
                )
            )
            scale, window = weights.head_dim**-0.5, weights.one_sided_attn_window_size + 1
            attended = attend_reads(
                weights, query, key, value, scale=scale, causal=False, window=window
            )
            return attended.flatten(2)
        if any(place > 0 for _, place in row.reads):
            return self._attend(weights, states, row)[:, row.read_places]
        out = torch.empty_like(states)
        self._attend_globally(weights, states, _heads(out, weights.num_heads), row.batch)
        return out[:, row.read_places]

    def _attend_globally(
        self, weights: Any, states: torch.Tensor, target: torch.Tensor, layout: PackedBatch
    ) -> None:
        key, value = (
            _heads(project(states), weights.num_heads)
            for project in (weights.key_global, weights.value_global)
        )
        scale = weights.head_dim**-0.5
        for run in layout.nodes:
            own, first = slice(*run.row), slice(run.row.start, run.row.start + 1)
            query = _heads(weights.query_global(states[:, first]), weights.num_heads)
            target[:, :, first] = attend(query, key[:, :, own], value[:, :, own], scale).out


def _finished(layer: Any, attended: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Take a layer on from its attention; ``[1, tokens, hidden]`` each."""
    attended = layer.attention.output(attended, states)
    finished: torch.Tensor = layer.output(layer.intermediate(attended), attended)
    return finished


def _heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """View ``[1, tokens, hidden]`` as ``[1, heads, tokens, dim]``."""
    return states.view(*states.shape[:2], num_heads, -1).transpose(1, 2)
