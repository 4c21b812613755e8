"""The variable-length attention backend (flash attention): one call per prefix depth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.attention import varlen

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.sdpa import AttentionOutput, AttentionParams, merge_attention
from alarm_models.types import Span

__all__ = ["VarlenBackend", "VarlenBatch", "varlen_batches"]


class VarlenBatch(NamedTuple):
    """Sequences of queries, each with the sequence of keys that it attends to.

    ``queries`` and ``keys``, ``[tokens]``, index the row's tokens and the batch's keys, with the
    sequences concatenated. Query sequence n is ``[cu_seqlens_q[n], cu_seqlens_q[n + 1])`` of
    ``queries``, and likewise for keys; both are int32, as the kernels require.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    max_seqlen_q: int
    max_seqlen_k: int


def varlen_batches(batch: PackedBatch, device: torch.device) -> list[VarlenBatch]:
    """Return a batch of every node over itself, then one per depth of descendants over ancestors.

    A node's descendants follow it directly, so each query occurs once per depth at most; over all
    depths, a token attends to each token of its prefix once.
    """
    within_nodes = [(node.row, node.keys) for node in batch.nodes if _length(node.row)]
    by_depth: list[list[tuple[Span, Span]]] = []
    open_until: list[int] = []
    for node in batch.nodes:
        while open_until and open_until[-1] <= node.row.start:
            open_until.pop()
        if node.subtree_end > node.row.end and _length(node.keys):
            depth = len(open_until)
            if depth == len(by_depth):
                by_depth.append([])
            by_depth[depth].append((Span(node.row.end, node.subtree_end), node.keys))
            open_until.append(node.subtree_end)
    return [_varlen_batch(pairs, device) for pairs in (within_nodes, *by_depth)]


def _varlen_batch(pairs: Sequence[tuple[Span, Span]], device: torch.device) -> VarlenBatch:
    queries, keys = ([pair[kind] for pair in pairs] for kind in (0, 1))
    return VarlenBatch(
        _indices(queries, device),
        _indices(keys, device),
        _cu_seqlens(queries, device),
        _cu_seqlens(keys, device),
        max(map(_length, queries)),
        max(map(_length, keys)),
    )


def _indices(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    indices = torch.cat([torch.arange(*span) for span in spans])
    return indices.to(device)


def _cu_seqlens(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    starts = [0, *accumulate(map(_length, spans))]
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _length(span: Span) -> int:
    return span.end - span.start


_UNLIMITED = (-1, -1)


class VarlenBackend:
    """Attends with torch's variable-length flash attention, on CUDA in half precision."""

    name = "alarm_varlen"

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the kernel supports this device and dtype."""
        return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `alarm_models.modeling.packed.attention.AttentionBackend.attend`.

        Raises `ValueError` for a softcap and for a global first token: the kernel supports neither.
        """
        scale, causal, window, softcap = params
        if softcap is not None:
            raise ValueError("the flash attention kernel does not support a softcap on logits")
        if window is not None and window.first_is_global:
            raise ValueError(
                "the flash attention kernel does not support a global token with a window"
            )
        within_nodes, *prefixes_by_depth = context.derived(varlen_batches, query.device)
        reach = (-1, 0) if causal else _UNLIMITED
        if window is not None:
            reach = (window.back, window.ahead)
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        out, lse = _attend(queries, keys, values, within_nodes, scale, reach)
        if prefixes_by_depth:
            # In float32, so that a token's error does not grow with the number of its prefixes.
            out = out.float()
        for prefixes in prefixes_by_depth:
            within = AttentionOutput(out[:, :, prefixes.queries], lse[:, :, prefixes.queries])
            before = _attend(queries, keys, values, prefixes, scale, _UNLIMITED)
            out[:, :, prefixes.queries], lse[:, :, prefixes.queries] = merge_attention(
                within, before
            )
        return out.to(query.dtype).transpose(1, 2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: VarlenBatch,
    scale: float,
    window: tuple[int, int],
) -> AttentionOutput:
    """Run one kernel call; ``[tokens, heads, dim]`` each."""
    out, lse = varlen.varlen_attn(
        query[batch.queries],
        key[batch.keys],
        value[batch.keys],
        batch.cu_seqlens_q,
        batch.cu_seqlens_k,
        batch.max_seqlen_q,
        batch.max_seqlen_k,
        return_aux=varlen.AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return AttentionOutput(
        out.transpose(0, 1).unsqueeze(0), lse.unsqueeze(0)
    )  # lse: [heads, tokens]
