"""The SDPA attention backend: one call a node of the prefix tree, and one for its descendants."""

from __future__ import annotations

import torch

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.kernels import (
    AttentionOutput,
    AttentionParams,
    attend,
    attend_blocks,
    merge_attention,
    window_blocks,
)

__all__ = ["SdpaBackend"]


class SdpaBackend:
    """Attends node by node with the kernel of torch's scaled dot product attention on a CPU.

    Elsewhere, and with a softcap, it computes logits in torch: the kernels there give no
    log-sum-exp to merge by. It runs everywhere.
    """

    name = "alarm_packed"

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Run anywhere."""
        return True

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Attend as `alarm_models.modeling.packed.attention.AttentionBackend` says."""
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = query.new_empty(query.transpose(1, 2).shape)  # [1, tokens, heads, dim]
        target = out.transpose(1, 2)
        if params.window is None:
            _attend_nodes(query, key, value, target, context.batch, params)
        else:
            blocks = context.derived(window_blocks, query.device, query.dtype, params.window)
            attend_blocks(query, key, value, target, params.scale, blocks, params.softcap)
        return out


def _attend_nodes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: torch.Tensor,
    batch: PackedBatch,
    params: AttentionParams,
) -> None:
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # [1, heads, tokens]
    for node in batch.nodes:
        if node.row.start == node.row.end:
            continue
        own, keys = slice(*node.row), slice(*node.keys)
        target[:, :, own], lse[:, :, own] = attend(
            query[:, :, own],
            key[:, :, keys],
            value[:, :, keys],
            params.scale,
            causal=params.causal,
            softcap=params.softcap,
        )
    if not batch.is_shared:
        return
    for node in batch.nodes:
        # Parents come before their descendants, whose own part is there by now.
        if node.subtree_end > node.row.end and node.keys.end > node.keys.start:
            keys, after = slice(*node.keys), slice(node.row.end, node.subtree_end)
            seen = attend(
                query[:, :, after],
                key[:, :, keys],
                value[:, :, keys],
                params.scale,
                softcap=params.softcap,
            )
            own_part = AttentionOutput(target[:, :, after], lse[:, :, after])
            target[:, :, after], lse[:, :, after] = merge_attention(own_part, seen)
