"""The compiled attention backend: one call of a compiled kernel for all samples and heads.

The kernel computes blocks of consecutive queries, and for each block the keys in some spans. Blocks
and spans depend only on the batch and are planned once for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from alarm_models.modeling.kernels.library import compiled_kernels
from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.sdpa import AttentionParams, SdpaBackend, Window
from alarm_models.types import Span

__all__ = ["CompiledBackend"]

#: A distance between query and key that no batch has.
_UNLIMITED = 1 << 40

#: Maximum number of key spans on average per block: a deeper tree is left to the other backend.
_MAX_SPANS = 256


class CompiledBackend:
    """Attends with the compiled kernel, on CPUs for which there is one.

    Logits with a soft cap, and trees of very many levels, are left to torch's kernel.
    """

    name = "alarm_compiled"

    def __init__(self) -> None:
        self._fallback = SdpaBackend()

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether there is a kernel for this device and dtype."""
        return device.type == "cpu" and compiled_kernels(dtype) is not None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `alarm_models.modeling.packed.attention.AttentionBackend.attend`."""
        kernels = compiled_kernels(query.dtype)
        plan = None
        if kernels is not None and params.softcap is None and kernels.attends(query, value):
            size = kernels.queries_per_block
            plan = context.derived(_plan, params.causal, params.window, size)
        if kernels is None or plan is None:
            return self._fallback.attend(query, key, value, context, params)
        num_tokens, num_keys = len(context.batch.ids), context.batch.num_keys
        if (len(query), query.shape[2], key.shape[2]) != (1, num_tokens, num_keys):
            # Attention to other states than the batch's own.
            raise ValueError(f"{query.shape[2]} queries and {key.shape[2]} keys in one packed row")
        # [tokens, heads, dim]
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        return kernels.attend(queries, keys, values, params.scale, *plan).unsqueeze(0)


class _Plan(NamedTuple):
    """The kernel's ``blocks``, ``[blocks, 4]``, and ``segments``, ``[segments, 6]``, in int64.

    See the structures `Block` and `Segment` of `attention.cpp`.
    """

    blocks: torch.Tensor
    segments: torch.Tensor


class _Node(NamedTuple):
    """A node's tokens in the row, the first one's key, and the spans of the keys before it."""

    row: Span
    first_key: int
    path: tuple[Span, ...]


def _plan(batch: PackedBatch, causal: bool, window: Window | None, size: int) -> _Plan | None:
    """Plan the attention over a batch in blocks of ``size`` queries; None for a very deep tree."""
    blocks: list[tuple[int, int, int, int]] = []
    segments: list[tuple[int, int, int, int, int, int]] = []
    for path, parts in _blocks(_nodes(batch), size):
        first_segment = len(segments)
        segments += ((*span, 0, size, -_UNLIMITED, _UNLIMITED) for span in path)
        first_query = parts[0][1].start
        for node, rows in parts:
            segments += _own_segments(node, rows, first_query, causal, window)
        num_queries = parts[-1][1].end - first_query
        blocks.append((first_query, num_queries, first_segment, len(segments)))
        if len(segments) > _MAX_SPANS * max(len(blocks), _MAX_SPANS):
            return None
    return _Plan(torch.tensor(blocks), torch.tensor(segments))


def _nodes(batch: PackedBatch) -> Iterator[_Node]:
    """Yield the nodes with tokens in the row."""
    paths: list[tuple[int, tuple[Span, ...]]] = []
    for node in batch.nodes:
        while paths and paths[-1][0] <= node.row.start:
            paths.pop()
        path = paths[-1][1] if paths else ()
        if node.row.end > node.row.start:
            yield _Node(node.row, node.keys.start, path)
        if node.subtree_end > node.row.end and node.keys.end > node.keys.start:
            if path and path[-1].end == node.keys.start:
                path = (*path[:-1], Span(path[-1].start, node.keys.end))
            else:
                path = (*path, node.keys)
            paths.append((node.subtree_end, path))


def _blocks(
    nodes: Iterator[_Node], size: int
) -> Iterator[tuple[tuple[Span, ...], list[tuple[_Node, Span]]]]:
    """Yield blocks of up to ``size`` consecutive queries that have the same path.

    Each has the nodes of its queries, and their spans in the row. A node that does not fit into the
    rest of a block starts a new one, unless filling the rest saves a block.
    """
    path: tuple[Span, ...] = ()
    parts: list[tuple[_Node, Span]] = []
    rest = 0
    for node in nodes:
        start, end = node.row
        needed = -(-(end - start) // size)
        if parts and (
            node.path != path
            or parts[-1][1].end != start
            or (end - start > rest and -(-(end - start - rest) // size) >= needed)
        ):
            yield path, parts
            parts, rest = [], 0
        path = node.path
        while start < end:
            if not rest:
                if parts:
                    yield path, parts
                parts, rest = [], size
            taken = min(rest, end - start)
            parts.append((node, Span(start, start + taken)))
            start, rest = start + taken, rest - taken
    if parts:
        yield path, parts


def _own_segments(
    node: _Node, rows: Span, first_query: int, causal: bool, window: Window | None
) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield the segments with keys of a node for its queries in ``rows``."""
    length = node.row.end - node.row.start
    first, last = rows.start - node.row.start, rows.end - node.row.start
    queries = (rows.start - first_query, rows.end - first_query)
    low, high = 0, last if causal else length
    least, most = -_UNLIMITED, first if causal else _UNLIMITED
    if window is not None:
        low, high = max(first - window.back, 0), min(last + window.ahead, length)
        if window.first_is_global:
            yield node.first_key, node.first_key + 1, *queries, -_UNLIMITED, _UNLIMITED
            low = max(low, 1)
        least, most = first - low - window.back, first - low + window.ahead
    if high > low:
        yield node.first_key + low, node.first_key + high, *queries, least, most
