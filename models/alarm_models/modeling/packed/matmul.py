"""The matmul attention backend: products over many nodes at once, and one softmax over all keys.

It computes and stores all logits of some heads, which torch's fused kernel avoids, but calls the
library's matrix products on large operands. Which is faster depends on the processor and the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.sdpa import (
    AttentionParams,
    Window,
    mask_to_bias,
    window_blocks,
)
from alarm_models.types import Span

__all__ = ["MatmulBackend", "QueryBatch", "QueryBatches", "query_batches"]

#: Queries of a piece of a node: a causal piece computes half of its own logits in vain.
_PIECE_SIZE = 256

#: Maximum number of logits computed at once: those of some heads, or at least of one.
_MAX_LOGITS = 1 << 21

#: Maximum ratio of the longest to the shortest piece of a batch, plus an absolute slack.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class QueryBatch(NamedTuple):
    """Pieces of nodes with about as many tokens, which attend to the same prefix.

    ``queries``, ``[pieces, queries]``, indexes the row and ``keys``, ``[pieces, keys]``, the keys;
    shorter pieces are padded by repeating their last token. ``prefix`` has the spans of keys that
    every query attends to; ``bias``, ``[pieces or 1, queries or 1, keys]``, is added to the logits
    of ``keys``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    prefix: tuple[Span, ...]
    bias: torch.Tensor | None


class QueryBatches(NamedTuple):
    """Batches that cover the row, and the place of each of its tokens in their queries."""

    batches: Sequence[QueryBatch]
    places: torch.Tensor


class _Piece(NamedTuple):
    prefix: tuple[Span, ...]
    queries: Span
    keys: Span


def query_batches(
    batch: PackedBatch,
    device: torch.device,
    dtype: torch.dtype,
    causal: bool,
    window: Window | None,
) -> QueryBatches:
    """Split the nodes of a packed batch into pieces, and batch pieces of about one length."""
    if window is not None:
        batches = list(_window_batches(batch, device, dtype, window))
        covered = [batched.queries.flatten() for batched in batches]
    else:
        batches, covered = [], []
        for pieces in _similar_pieces(_pieces(batch, causal)):
            batches.append(_query_batch(pieces, causal, device, dtype))
            covered.append(_covered([piece.queries for piece in pieces]))
    tokens = torch.cat(covered).to(device)
    places = torch.empty(len(batch.ids), dtype=torch.long, device=device)
    is_token = tokens >= 0
    places[tokens[is_token]] = is_token.nonzero().squeeze(1)
    return QueryBatches(batches, places)


def _pieces(batch: PackedBatch, causal: bool) -> Iterator[_Piece]:
    """Yield the pieces of all nodes, each with the prefix that all of its queries attend to."""
    path: list[tuple[int, Span]] = []
    for node in batch.nodes:
        while path and path[-1][0] <= node.row.start:
            path.pop()
        prefix = tuple(keys for _, keys in path)
        length = node.row.end - node.row.start
        for start in range(0, length, _PIECE_SIZE):
            end = min(start + _PIECE_SIZE, length)
            queries = Span(node.row.start + start, node.row.start + end)
            if causal:
                before = Span(node.keys.start, node.keys.start + start)
                keys = Span(node.keys.start + start, node.keys.start + end)
                yield _Piece((*prefix, before) if start else prefix, queries, keys)
            elif length > _PIECE_SIZE:
                yield _Piece((node.keys,), queries, Span(node.keys.start, node.keys.start))
            else:
                yield _Piece((), queries, node.keys)
        if node.subtree_end > node.row.end and node.keys.end > node.keys.start:
            path.append((node.subtree_end, node.keys))


def _similar_pieces(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    """Yield lists of pieces with one prefix and about one length."""
    by_prefix: dict[tuple[Span, ...], list[_Piece]] = {}
    for piece in pieces:
        by_prefix.setdefault(piece.prefix, []).append(piece)
    for prefix, alike in by_prefix.items():
        alike.sort(key=lambda piece: _length(piece.queries))
        num_before = sum(map(_length, prefix))
        batch: list[_Piece] = []
        for piece in alike:
            longest = _length(piece.queries)
            num_logits = (len(batch) + 1) * longest * (num_before + longest)
            if batch and (
                longest > _MAX_WASTE * _length(batch[0].queries) + _FREE_TOKENS
                or num_logits > _MAX_LOGITS
            ):
                yield batch
                batch = []
            batch.append(piece)
        yield batch


def _query_batch(
    pieces: Sequence[_Piece], causal: bool, device: torch.device, dtype: torch.dtype
) -> QueryBatch:
    queries = _padded([piece.queries for piece in pieces])
    keys = _padded([piece.keys for piece in pieces])
    bias = None
    if causal:
        # Padding comes last, so no token attends to it.
        mask = torch.ones(queries.shape[1], keys.shape[1], dtype=torch.bool).tril()
        bias = mask_to_bias(mask.unsqueeze(0), dtype).to(device)
    else:
        lengths = torch.tensor([_length(piece.keys) for piece in pieces])
        mask = torch.arange(keys.shape[1]) < lengths.unsqueeze(1)
        bias = None if bool(mask.all()) else mask_to_bias(mask.unsqueeze(1), dtype).to(device)
    return QueryBatch(queries.to(device), keys.to(device), pieces[0].prefix, bias)


def _padded(spans: Sequence[Span]) -> torch.Tensor:
    """Return the indices of spans, ``[spans, longest]``, with the last one repeated."""
    longest = max(map(_length, spans))
    starts, lasts = (torch.tensor(some).unsqueeze(1) for some in zip(*spans, strict=True))
    return torch.minimum(starts + torch.arange(longest), lasts - 1)


def _covered(spans: Sequence[Span]) -> torch.Tensor:
    """Return the padded indices of spans, flat, with -1 for padding."""
    longest = max(map(_length, spans))
    starts, ends = (torch.tensor(some).unsqueeze(1) for some in zip(*spans, strict=True))
    indices = starts + torch.arange(longest)
    return indices.masked_fill(indices >= ends, -1).flatten()


def _window_batches(
    batch: PackedBatch, device: torch.device, dtype: torch.dtype, window: Window
) -> Iterator[QueryBatch]:
    """Yield batches of the blocks of a sliding window that have one shape and one bias."""
    alike: dict[tuple[int, int, int], list[tuple[list[int], list[int]]]] = {}
    biases: dict[tuple[int, int, int], torch.Tensor | None] = {}
    for block in window_blocks(batch, device, dtype, window):
        queries = list(range(block.queries.start, block.queries.stop))
        keys = list(range(block.keys.start, block.keys.stop))
        if block.first is not None:
            keys.insert(0, block.first.start)
        shape = (len(queries), len(keys), id(block.bias))
        limit = max(_MAX_LOGITS // (len(queries) * len(keys)), 1)
        blocks = alike.setdefault(shape, [])
        biases[shape] = block.bias
        blocks.append((queries, keys))
        if len(blocks) == limit:
            yield _window_batch(alike.pop(shape), block.bias, device)
    for shape, rest in alike.items():
        yield _window_batch(rest, biases[shape], device)


def _window_batch(
    blocks: Sequence[tuple[list[int], list[int]]], bias: torch.Tensor | None, device: torch.device
) -> QueryBatch:
    queries, keys = (torch.tensor(some, device=device) for some in zip(*blocks, strict=True))
    return QueryBatch(queries, keys, (), None if bias is None else bias.unsqueeze(0))


def _length(span: Span) -> int:
    return span.end - span.start


class MatmulBackend:
    """Attends with batched matrix products: nodes of about one length, and all after one prefix.

    It supports every device and dtype, and computes logits in the dtype of the queries.
    """

    name = "alarm_matmul"

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
        batches, places = context.derived(
            query_batches, query.device, query.dtype, params.causal, params.window
        )
        # A token's heads are contiguous, and are gathered in one piece.
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        parts = [_attend_batch(queries, keys, values, batch, params) for batch in batches]
        return torch.cat(parts).index_select(0, places).unsqueeze(0)


def _attend_batch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: QueryBatch,
    params: AttentionParams,
) -> torch.Tensor:
    """Attend from a batch's queries; ``[tokens, heads, dim]`` each."""
    (pieces, length), num_heads, num_kv_heads = batch.queries.shape, query.shape[1], key.shape[1]
    groups = num_heads // num_kv_heads
    # [kv heads, pieces, queries of all heads of the kv head, dim]
    queries = query.index_select(0, batch.queries.flatten())
    queries = queries.view(pieces, length, num_kv_heads, groups, -1).permute(2, 0, 3, 1, 4)
    queries = queries.contiguous().view(num_kv_heads, pieces, groups * length, -1)
    keys, values = (_gather(some, batch.keys) for some in (key, value))
    num_keys = sum(map(_length, batch.prefix)) + batch.keys.shape[1]
    step = max(_MAX_LOGITS // (pieces * groups * length * num_keys), 1)
    parts = [
        _attend_heads(
            queries[some],
            keys[some],
            values[some],
            [(key[slice(*span), some], value[slice(*span), some]) for span in batch.prefix],
            batch.bias,
            groups,
            params,
        )
        for some in (slice(at, at + step) for at in range(0, num_kv_heads, step))
    ]
    out = torch.cat(parts).view(num_kv_heads, pieces, groups, length, -1)
    return out.permute(1, 3, 0, 2, 4).reshape(pieces * length, num_heads, -1)


def _gather(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather the tokens at ``[pieces, tokens]``; return ``[heads, pieces, tokens, dim]``."""
    gathered = states.index_select(0, indices.flatten())
    return gathered.view(*indices.shape, *states.shape[1:]).permute(2, 0, 1, 3).contiguous()


def _attend_heads(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    prefixes: Sequence[tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor | None,
    groups: int,
    params: AttentionParams,
) -> torch.Tensor:
    """Attend for some heads; return ``[heads, pieces, queries, dim]`` like ``queries``.

    The queries are those of ``groups`` heads, one after the other. ``keys`` and ``values`` are
    ``[heads, pieces, keys, dim]``, those of a prefix ``[keys, heads, dim]``.
    """
    heads, pieces, length, dim = queries.shape
    together = queries.view(heads, pieces * length, dim)
    apart = queries.view(heads * pieces, length, dim)
    own = _scaled(apart, keys.flatten(0, 1).transpose(1, 2), params)
    if bias is not None:
        own.view(heads, pieces, groups, -1, own.shape[-1]).add_(bias.unsqueeze(1))
    over_prefix = [_scaled(together, some.permute(1, 2, 0), params) for some, _ in prefixes]
    shape = (heads, pieces, length, -1)
    logits = torch.cat([some.view(shape) for some in (*over_prefix, own)], -1)
    weights = torch.softmax(logits, -1)
    *of_prefix, of_own = torch.split(weights, [some.shape[-1] for some in (*over_prefix, own)], -1)
    out = torch.bmm(of_own.flatten(0, 1), values.flatten(0, 1)).view(heads, pieces * length, dim)
    for some, (_, prefix_values) in zip(of_prefix, prefixes, strict=True):
        out.baddbmm_(some.flatten(1, 2), prefix_values.transpose(0, 1))
    return out.view(queries.shape)


def _scaled(query: torch.Tensor, key: torch.Tensor, params: AttentionParams) -> torch.Tensor:
    """Return the logits of ``[batch, queries, dim]`` and ``[batch, dim, keys]``."""
    logits = torch.baddbmm(query.new_zeros(()), query, key, beta=0, alpha=params.scale)
    if params.softcap is None:
        return logits
    return logits.div_(params.softcap).tanh_().mul_(params.softcap)
