"""The arithmetic of attention: within a window, over parts, and parts merged exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Attended", "attend", "band", "merged"]

#: Queries a block where a window bounds what they see.
_BLOCK = 128


class Attended(NamedTuple):
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
    mask: torch.Tensor | None = None,
) -> Attended:
    """Attend over ``[1, heads, queries, dim]``; ``mask`` is true where a query sees a key."""
    if softcap is None and query.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return Attended(out, lse)
    return _attend_plainly(query, key, value, scale, causal=causal, softcap=softcap, mask=mask)


def _attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    causal: bool,
    softcap: float | None,
    mask: torch.Tensor | None,
) -> Attended:
    logits = (query @ key.transpose(-1, -2)).float() * scale  # [1, heads, queries, keys]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if causal:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(logits, -1)
    return Attended(torch.exp(logits - lse.unsqueeze(-1)).to(value.dtype) @ value, lse)


def band(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    back: int,
    ahead: int,
    softcap: float | None = None,
    *,
    first_is_global: bool = False,
) -> torch.Tensor:
    """Attend within one sample, each token to ``back`` before it and ``ahead`` after it.

    ``[1, heads, tokens, dim]`` in and out. With ``first_is_global`` every token sees the first one
    too, wherever it stands. Work grows with tokens times window, not with tokens squared.
    """
    num_tokens = query.shape[2]
    parts = []
    for start in range(0, num_tokens, _BLOCK):
        end = min(start + _BLOCK, num_tokens)
        low, high = max(start - back, 0), min(end + ahead, num_tokens)
        places = torch.arange(low, high, device=query.device)
        keys, values = key[:, :, low:high], value[:, :, low:high]
        if first_is_global and low > 0:
            places = torch.cat([places.new_zeros(1), places])
            keys = torch.cat([key[:, :, :1], keys], 2)
            values = torch.cat([value[:, :, :1], values], 2)
        distance = places - torch.arange(start, end, device=query.device).unsqueeze(1)
        mask = (distance >= -back) & (distance <= ahead)  # [queries, keys]
        if first_is_global:
            mask |= places == 0
        seen = None if bool(mask.all()) else mask
        block = query[:, :, start:end]
        parts.append(attend(block, keys, values, scale, softcap=softcap, mask=seen).out)
    return torch.cat(parts, 2)


def merged(one: Attended, other: Attended) -> Attended:
    """Merge two attentions of the same queries over keys that have none in common."""
    lse = torch.logaddexp(one.lse, other.lse)
    left, right = (torch.exp(part.lse - lse).unsqueeze(-1) for part in (one, other))
    out = one.out * left.to(one.out.dtype) + other.out * right.to(one.out.dtype)
    return Attended(out, lse)
