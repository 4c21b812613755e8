"""Attention with log-sum-exp, its exact merge, and sliding-window blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from alarm_models.modeling.packed.batch import PackedBatch
from alarm_models.types import Span

__all__ = [
    "AttentionBlock",
    "AttentionOutput",
    "AttentionParams",
    "Window",
    "attend",
    "attend_blocks",
    "mask_to_bias",
    "merge_attention",
    "window_blocks",
]


class AttentionOutput(NamedTuple):
    """Attention's result with what merges it with another over other keys.

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
    """Attend over ``[1, heads, queries, dim]``.

    ``bias`` (`mask_to_bias`) is added to logits, of the query's dtype, and ``[queries, keys]``
    or has more dimensions before.
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
    logits = (query @ key.transpose(-1, -2)).float() * scale  # [1, heads, queries, keys]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if causal:
        unseen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        logits = logits.masked_fill(unseen, float("-inf"))
    if bias is not None:
        logits = logits + bias
    lse = torch.logsumexp(logits, -1)
    return AttentionOutput(torch.exp(logits - lse.unsqueeze(-1)).to(value.dtype) @ value, lse)


def mask_to_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what to add to logits so that a query sees a key where ``mask`` is true."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def merge_attention(one: AttentionOutput, other: AttentionOutput) -> AttentionOutput:
    """Merge two attentions of the same queries over keys that have none in common."""
    lse = torch.logaddexp(one.lse, other.lse)
    left, right = (torch.exp(part.lse - lse).unsqueeze(-1) for part in (one, other))
    out = one.out * left.to(one.out.dtype) + other.out * right.to(one.out.dtype)
    return AttentionOutput(out, lse)


#: Queries a block.
_SIZE = 128


class Window(NamedTuple):
    """What a token sees of its own sample: so many tokens before it and after it, and itself.

    With ``first_is_global`` every token sees the sample's first one too, wherever it is.
    """

    back: int
    ahead: int
    first_is_global: bool = False


class AttentionParams(NamedTuple):
    """How a layer attends.

    ``window`` is given where it cuts samples, which then share no prefix; ``softcap`` is Gemma 2's.
    """

    scale: float
    causal: bool
    window: Window | None = None
    softcap: float | None = None


class AttentionBlock(NamedTuple):
    """Neighbouring queries, and the keys that any of them sees, by their places in the row.

    ``first`` is where their node's first token is, if they see it although it is not among
    the keys. ``bias``, ``[queries, keys]``, the first token's before the others, is added to
    logits; None where every query sees every key.
    """

    queries: slice
    keys: slice
    first: slice | None
    bias: torch.Tensor | None


def window_blocks(
    batch: PackedBatch, device: torch.device, dtype: torch.dtype, window: Window
) -> list[AttentionBlock]:
    """Cut the nodes of a batch, none of which has descendants, into blocks."""

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

    found = []
    for node in batch.nodes:
        for (start, end), (low, high) in _query_blocks(node.row, window):
            has_first = window.first_is_global and low > node.row.start
            first = slice(node.row.start, node.row.start + 1) if has_first else None
            seen = bias(end - start, high - low, start - low, has_first)
            found.append(AttentionBlock(slice(start, end), slice(low, high), first, seen))
    return found


def _query_blocks(row: Span, window: Window) -> Iterator[tuple[Span, Span]]:
    """Yield neighbouring queries of a node, with the keys that any of them sees."""
    # Where every token sees every other one block is cheapest.
    size = (
        _SIZE if row.end - row.start > min(window.back, window.ahead) + 1 else row.end - row.start
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
        own = query[:, :, block.queries]
        target[:, :, block.queries] = attend(
            own, keys, values, scale, softcap=softcap, bias=block.bias
        ).out
