"""Attention over a row of packed samples: each sees itself and what it goes on from."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface

from alarm_models.packing.bands import Band, attend_blocks, blocks_of
from alarm_models.packing.kernels import Attended, attend, bias_of, merged
from alarm_models.packing.layout import Layout
from alarm_models.packing.reading import readings
from alarm_models.packing.row import current_row

__all__ = ["PACKED", "attend_reads", "packed_attention"]

#: The name under which transformers' models find our attention.
PACKED = "alarm_packed"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' attention functions do: ``[1, heads, tokens, dim]`` in.

    Returns ``[1, tokens, heads, dim]``. ``sliding_window`` counts the tokens that a token sees on
    a side, itself among them; ``softcap`` is Gemma 2's.
    """
    row = current_row()
    layout = row.layout
    key, value = row.with_known(module, key, value)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = scaling or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = query.new_empty(query.transpose(1, 2).shape)  # [1, tokens, heads, dim]
    target = out.transpose(1, 2)
    if sliding_window is not None and layout.is_cut_by(sliding_window):
        band = Band(sliding_window - 1, 0 if causal else sliding_window - 1)
        blocks = row.once(blocks_of, query.device, query.dtype, band)
        attend_blocks(query, key, value, target, scale, blocks, softcap)
    else:
        _attend_runs(query, key, value, target, layout, scale, causal, softcap)
    return out, None


def _attend_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: torch.Tensor,
    layout: Layout,
    scale: float,
    causal: bool,
    softcap: float | None,
) -> None:
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # [1, heads, tokens]
    for run in layout.runs:
        if run.row.start == run.row.end:
            continue
        own, keys = slice(*run.row), slice(*run.keys)
        target[:, :, own], lse[:, :, own] = attend(
            query[:, :, own],
            key[:, :, keys],
            value[:, :, keys],
            scale,
            causal=causal,
            softcap=softcap,
        )
    if not layout.is_shared:
        return
    for run in layout.runs:
        # Parents come before their continuations, whose own part is there by now.
        if run.reach > run.row.end and run.keys.end > run.keys.start:
            keys, after = slice(*run.keys), slice(run.row.end, run.reach)
            seen = attend(
                query[:, :, after], key[:, :, keys], value[:, :, keys], scale, softcap=softcap
            )
            mine = Attended(target[:, :, after], lse[:, :, after])
            target[:, :, after], lse[:, :, after] = merged(mine, seen)


def attend_reads(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attend for the current row's reads alone, over the keys of their samples' tokens.

    ``query`` is ``[1, heads, reads, dim]``; returns ``[1, reads, heads, dim]``. ``window`` is as in
    `packed_attention`.
    """
    row = current_row()
    key, value = row.with_known(module, key, value)
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(query.transpose(1, 2).shape)
    some_reads = readings(row.layout, row.reads, causal=causal, window=window, device=query.device)
    for some in some_reads:
        keys, values = (_of_tokens(states, some.keys, groups) for states in (key, value))
        queries = query[0][:, some.queries].transpose(0, 1)  # [batch, heads, queries, dim]
        bias = None if some.mask is None else bias_of(some.mask, query.dtype)
        attended = attend(queries, keys, values, scale, bias=bias).out
        out[0, some.queries] = attended.transpose(1, 2)
    return out


def _of_tokens(states: torch.Tensor, places: torch.Tensor, times: int) -> torch.Tensor:
    """Take the tokens at ``[batch, keys]`` from ``[1, heads, tokens, dim]``, each head so often.

    Returns ``[batch, heads * times, keys, dim]``. A token's heads lie side by side and are copied
    in one piece.
    """
    tokens = states[0].transpose(0, 1)  # [tokens, heads, dim]
    rows = tokens.index_select(0, places.flatten())
    taken = rows.view(*places.shape, *tokens.shape[1:]).transpose(1, 2)
    return taken if times == 1 else taken.repeat_interleave(times, 1)


AttentionInterface.register(PACKED, packed_attention)
