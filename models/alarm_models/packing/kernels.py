"""The arithmetic of attention: over all keys or some, and parts merged exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Attended", "attend", "bias_of", "merged"]


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
    bias: torch.Tensor | None = None,
) -> Attended:
    """Attend over ``[1, heads, queries, dim]``; ``bias`` is added to logits, as `bias_of` gives it.

    It is of the query's dtype, and ``[queries, keys]`` or has more dimensions before.
    """
    if softcap is None and query.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=bias, scale=scale
        )
        return Attended(out, lse)
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
) -> Attended:
    logits = (query @ key.transpose(-1, -2)).float() * scale  # [1, heads, queries, keys]
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if causal:
        unseen = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
        logits = logits.masked_fill(unseen, float("-inf"))
    if bias is not None:
        logits = logits + bias
    lse = torch.logsumexp(logits, -1)
    return Attended(torch.exp(logits - lse.unsqueeze(-1)).to(value.dtype) @ value, lse)


def bias_of(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what to add to logits so that a query sees a key where ``mask`` is true."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, float("-inf")
    )


def merged(one: Attended, other: Attended) -> Attended:
    """Merge two attentions of the same queries over keys that have none in common."""
    lse = torch.logaddexp(one.lse, other.lse)
    left, right = (torch.exp(part.lse - lse).unsqueeze(-1) for part in (one, other))
    out = one.out * left.to(one.out.dtype) + other.out * right.to(one.out.dtype)
    return Attended(out, lse)
