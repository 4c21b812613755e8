"""The SDPA attention backend: attention with log-sum-exp, its exact merge, sliding windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.types import Span

__all__ = [
    "AttentionBlock",
    "AttentionOutput",
    "AttentionParams",
    "SdpaBackend",
    "Window",
    "attend",
    "attend_blocks",
    "mask_to_bias",
    "merge_attention",
    "window_blocks",
]


class AttentionOutput(NamedTuple):
    """The result of attention, with the log-sum-exp for merging it with attention over other keys.

    ``out`` is ``[1, heads, queries, dim]``; ``lse``, the log of the sum of exponentiated logits,
    ``[1, heads, queries]``.
    """

    out: torch.Tensor
    lse: torch.Tensor


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    causal: bool = False,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
) -> AttentionOutput:
    """Attend over ``[1, heads, queries, dim]``; keys and values have as many heads or fewer.

    ``bias`` (see `mask_to_bias`) is added to the logits. It has the query's dtype and shape ``[...,
    queries, keys]``.
    """
    if softcap is None and query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return AttentionOutput(out, lse)
    return _attend_plainly(query, key, value, scale, causal=causal, softcap=softcap, bias=bias)


def _attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    causal: bool,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> AttentionOutput:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = (query @ key.transpose(-1, -2)).float() * scale  # [1, heads, queries, keys]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
    if bias is not None:
        logits = logits + bias
    lse = torch.logsumexp(logits, -1)
    return AttentionOutput(torch.exp(logits - lse.unsqueeze(-1)).to(value.dtype) @ value, lse)


def mask_to_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the bias with which a query attends to a key only where ``mask`` is true."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def merge_attention(one: AttentionOutput, other: AttentionOutput) -> AttentionOutput:
    """Merge two attention results of the same queries over disjoint sets of keys, in float32."""
    lse = torch.logaddexp(one.lse, other.lse)
    left, right = (torch.exp(part.lse - lse).unsqueeze(-1) for part in (one, other))
    out = one.out * left + other.out * right
    return AttentionOutput(out, lse)


#: Number of queries per block.
_BLOCK_SIZE = 128


class Window(NamedTuple):
    """A sliding window: each token attends to ``back`` tokens before it and ``ahead`` after it.

    With ``first_is_global`` every token also attends to the first token of its sample.
    """

    back: int
    ahead: int
    first_is_global: bool = False


class AttentionParams(NamedTuple):
    """Attention parameters of a layer.

    ``window`` is set if samples are longer than it; they then share no prefix. ``softcap`` is Gemma
    2's.
    """

    scale: float
    causal: bool
    window: Window | None = None
    softcap: float | None = None


class AttentionBlock(NamedTuple):
    """Consecutive queries and all the keys that they attend to, as slices of the row.

    ``first`` is the node's first token, if the queries attend to it and ``keys`` does not include
    it. ``bias``, ``[queries, keys]`` with the first token's column in front, is added to the
    logits; None if every query attends to every key.
    """

    queries: slice
    keys: slice
    first: slice | None
    bias: torch.Tensor | None


def window_blocks(
    batch: PackedBatch, device: torch.device, dtype: torch.dtype, window: Window
) -> list[AttentionBlock]:
    """Split the nodes of a batch, none of which has descendants, into blocks."""

    @cache
    def bias(queries: int, keys: int, offset: int, with_first: bool) -> torch.Tensor | None:
        # From each query, ``offset`` after the first key, to each key.
        distance = torch.arange(keys) - torch.arange(offset, offset + queries).unsqueeze(1)
        mask = (distance >= -window.back) & (distance <= window.ahead)
        if window.first_is_global:
            if with_first:
                mask = torch.cat([mask.new_ones(queries, 1), mask], 1)
            mask[:, 0] = True
        return None if bool(mask.all()) else mask_to_bias(mask, dtype).to(device)

    blocks = []
    for node in batch.nodes:
        for (start, end), (low, high) in _query_blocks(node.row, window):
            has_first = window.first_is_global and low > node.row.start
            first = slice(node.row.start, node.row.start + 1) if has_first else None
            block_bias = bias(end - start, high - low, start - low, has_first)
            blocks.append(AttentionBlock(slice(start, end), slice(low, high), first, block_bias))
    return blocks


def _query_blocks(row: Span, window: Window) -> Iterator[tuple[Span, Span]]:
    """Yield blocks of consecutive queries of a node, with the keys that they attend to."""
    # One block is cheapest if every token attends to every other.
    size = (
        _BLOCK_SIZE
        if row.end - row.start > min(window.back, window.ahead) + 1
        else row.end - row.start
    )
    for start in range(row.start, row.end, max(size, 1)):
        end = min(start + size, row.end)
        yield (
            Span(start, end),
            Span(max(start - window.back, row.start), min(end + window.ahead, row.end)),
        )


def attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: torch.Tensor,
    scale: float,
    blocks: Sequence[AttentionBlock],
    softcap: float | None = None,
) -> None:
    """Attend into ``target``; all are ``[1, heads, tokens of the row, dim]``."""
    for block in blocks:
        keys, values = key[:, :, block.keys], value[:, :, block.keys]
        if block.first is not None:
            keys = torch.cat([key[:, :, block.first], keys], 2)
            values = torch.cat([value[:, :, block.first], values], 2)
        queries = query[:, :, block.queries]
        target[:, :, block.queries] = attend(
            queries, keys, values, scale, softcap=softcap, bias=block.bias
        ).out


class SdpaBackend:
    """Attends node by node, on a CPU with the kernel of torch's scaled dot product attention.

    On other devices, and with a softcap, it computes the logits in torch, because the kernels there
    do not return a log-sum-exp. It supports every device and dtype.
    """

    name = "alarm_packed"

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return True: every device and dtype is supported."""
        return True

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `alarm_models.modeling.packed.attention.AttentionBackend.attend`."""
        if params.window is None:
            return _attend_nodes(query, key, value, context.batch, params)
        blocks = context.derived(window_blocks, query.device, query.dtype, params.window)
        out = query.new_empty(query.transpose(1, 2).shape)  # [1, tokens, heads, dim]
        target = out.transpose(1, 2)
        attend_blocks(query, key, value, target, params.scale, blocks, params.softcap)
        return out


def _attend_nodes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    params: AttentionParams,
) -> torch.Tensor:
    # Nodes are in order and cover the row and the keys, so their results are concatenated.
    rows = [node.row.end - node.row.start for node in batch.nodes]
    keys = [node.keys.end - node.keys.start for node in batch.nodes]
    queries, own_keys, values = (
        torch.split(states, lengths, 2)
        for states, lengths in ((query, rows), (key, keys), (value, keys))
    )
    own = [
        attend(*part, params.scale, causal=params.causal, softcap=params.softcap)
        for part in zip(queries, own_keys, values, strict=True)
        if part[0].shape[2]
    ]
    out = torch.cat([one.out.transpose(1, 2) for one in own], 1)  # [1, tokens, heads, dim]
    if batch.is_shared:
        lse = torch.cat([one.lse for one in own], 2)  # [1, heads, tokens]
        # In float32, so that a token's error does not grow with the number of its prefixes.
        merged = out.float()
        target = AttentionOutput(merged.transpose(1, 2), lse)
        _attend_prefixes(query, key, value, target, batch, params)
        out = merged.to(out.dtype)
    return out


def _attend_prefixes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: AttentionOutput,
    batch: PackedBatch,
    params: AttentionParams,
) -> None:
    """Merge attention to the shared prefixes into the target, which has that to the own nodes."""
    for node in batch.nodes:
        if node.subtree_end > node.row.end and node.keys.end > node.keys.start:
            keys, after = slice(*node.keys), slice(node.row.end, node.subtree_end)
            over_prefix = attend(
                query[:, :, after],
                key[:, :, keys],
                value[:, :, keys],
                params.scale,
                softcap=params.softcap,
            )
            over_own = AttentionOutput(target.out[:, :, after], target.lse[:, :, after])
            target.out[:, :, after], target.lse[:, :, after] = merge_attention(
                over_own, over_prefix
            )
