"""Attention over a row by torch's variable-length kernel: one call a level, whatever is packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface

from alarm_models.packing.kernels import Attended, merged
from alarm_models.packing.levels import Level, levels_of
from alarm_models.packing.row import current_row

__all__ = ["VARLEN", "attend_within", "can_varlen", "varlen_attention"]

#: The name under which transformers' models find this attention.
VARLEN = "alarm_varlen"

_EVERYTHING = (-1, -1)


def can_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether the kernel may serve: it is flash attention's, for CUDA and half precision."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def varlen_attention(
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
    """Attend as `alarm_models.packing.attention.packed_attention` does.

    Raises `ValueError` for a softcap, which the kernel does not know.
    """
    if softcap is not None:
        raise ValueError("flash attention's kernel caps no logits")
    row = current_row()
    key, value = row.with_known(module, key, value)
    first, *deeper = row.once(levels_of, query.device)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = (-1, 0) if causal else _EVERYTHING
    if sliding_window is not None and row.layout.is_cut_by(sliding_window):
        window = (sliding_window - 1, 0 if causal else sliding_window - 1)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = scaling or query.shape[-1] ** -0.5
    out, lse = _attend(queries, keys, values, first, scale, window)
    for level in deeper:
        own = Attended(out[:, :, level.queries], lse[:, :, level.queries])
        seen = _attend(queries, keys, values, level, scale, _EVERYTHING)
        out[:, :, level.queries], lse[:, :, level.queries] = merged(own, seen)
    return out.transpose(1, 2), None


def attend_within(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    levels: Sequence[Level],
    scale: float,
    window: tuple[int, int],
) -> torch.Tensor:
    """Attend within each run of a row that shares nothing, to so many tokens before and after.

    ``[1, heads, tokens, dim]`` in and out.
    """
    (level,) = levels
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    return _attend(queries, keys, values, level, scale, window).out


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    level: Level,
    scale: float,
    window: tuple[int, int],
) -> Attended:
    """Attend over one level; ``[tokens, heads, dim]`` each."""
    out, lse = varlen.varlen_attn(
        query[level.queries],
        key[level.keys],
        value[level.keys],
        level.query_starts,
        level.key_starts,
        level.longest_query,
        level.longest_key,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return Attended(out.transpose(0, 1).unsqueeze(0), lse.unsqueeze(0))  # lse: [heads, tokens]


AttentionInterface.register(VARLEN, varlen_attention)
