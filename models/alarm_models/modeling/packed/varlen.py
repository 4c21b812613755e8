"""The variable-length attention backend (flash attention): one call per prefix depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface

from alarm_models.modeling.packed.batch import PackedBatch, get_forward_context
from alarm_models.modeling.packed.kernels import AttentionOutput, merge_attention
from alarm_models.types import Span

__all__ = [
    "VARLEN",
    "VarlenBatch",
    "attend_within",
    "can_varlen",
    "varlen_attention",
    "varlen_batches",
]


class VarlenBatch(NamedTuple):
    """Sequences of queries, each beside the sequence of keys that it attends over.

    ``queries`` and ``keys``, ``[tokens]``, say where in the row and among the keys the sequences
    stand, end to end. Sequence n of the queries is ``[query_starts[n], query_starts[n + 1])`` of
    them, and so for keys: int32, as kernels want it.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int


def varlen_batches(layout: PackedBatch, device: torch.device) -> list[VarlenBatch]:
    """Return first every run over itself, then for each depth what goes on from runs there.

    A run's continuations follow it directly, so that no query comes twice in a level; over all
    levels a token sees the whole of its sample's beginning once.
    """
    own = [(run.row, run.keys) for run in layout.nodes if _length(run.row)]
    by_depth: list[list[tuple[Span, Span]]] = []
    open_until: list[int] = []
    for run in layout.nodes:
        while open_until and open_until[-1] <= run.row.start:
            open_until.pop()
        if run.subtree_end > run.row.end and _length(run.keys):
            depth = len(open_until)
            if depth == len(by_depth):
                by_depth.append([])
            by_depth[depth].append((Span(run.row.end, run.subtree_end), run.keys))
            open_until.append(run.subtree_end)
    return [_varlen_batch(pairs, device) for pairs in (own, *by_depth)]


def _varlen_batch(pairs: Sequence[tuple[Span, Span]], device: torch.device) -> VarlenBatch:
    queries, keys = ([pair[kind] for pair in pairs] for kind in (0, 1))
    return VarlenBatch(
        _places(queries, device),
        _places(keys, device),
        _starts(queries, device),
        _starts(keys, device),
        max(map(_length, queries)),
        max(map(_length, keys)),
    )


def _places(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    places = torch.cat([torch.arange(*span) for span in spans])
    return places.to(device)


def _starts(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    starts = [0, *accumulate(map(_length, spans))]
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _length(span: Span) -> int:
    return span.end - span.start


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
    """Attend as `alarm_models.modeling.packed.attention.packed_attention` does.

    Raises `ValueError` for a softcap, which the kernel does not know.
    """
    if softcap is not None:
        raise ValueError("flash attention's kernel caps no logits")
    row = get_forward_context()
    key, value = row.with_cached_kv(module, key, value)
    first, *deeper = row.cached(varlen_batches, query.device)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = (-1, 0) if causal else _EVERYTHING
    if sliding_window is not None and row.batch.is_cut_by(sliding_window):
        window = (sliding_window - 1, 0 if causal else sliding_window - 1)
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    scale = scaling or query.shape[-1] ** -0.5
    out, lse = _attend(queries, keys, values, first, scale, window)
    for level in deeper:
        own = AttentionOutput(out[:, :, level.queries], lse[:, :, level.queries])
        seen = _attend(queries, keys, values, level, scale, _EVERYTHING)
        out[:, :, level.queries], lse[:, :, level.queries] = merge_attention(own, seen)
    return out.transpose(1, 2), None


def attend_within(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    levels: Sequence[VarlenBatch],
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
    level: VarlenBatch,
    scale: float,
    window: tuple[int, int],
) -> AttentionOutput:
    """Attend over one level; ``[tokens, heads, dim]`` each."""
    out, lse = varlen.varlen_attn(
        query[level.queries],
        key[level.keys],
        value[level.keys],
        level.cu_seqlens_q,
        level.cu_seqlens_k,
        level.max_seqlen_q,
        level.max_seqlen_k,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return AttentionOutput(
        out.transpose(0, 1).unsqueeze(0), lse.unsqueeze(0)
    )  # lse: [heads, tokens]


AttentionInterface.register(VARLEN, varlen_attention)
