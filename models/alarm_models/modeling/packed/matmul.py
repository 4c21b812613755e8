"""The matmul attention backends: products of many queries and keys, and a softmax over all keys.

They compute and store all logits of some heads, which torch's fused kernel avoids, but call the
library's matrix products on large operands. Which is faster depends on the processor and the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch
from alarm_models.modeling.packed.sdpa import (
    AttentionOutput,
    AttentionParams,
    SdpaBackend,
    Window,
    attend,
    mask_to_bias,
    merge_attention,
    window_blocks,
)
from alarm_models.types import Span

__all__ = ["MatmulBackend", "QueryBatch"]

#: Queries of a piece of a node: a causal piece computes half of its own logits in vain.
_PIECE_SIZE = 256

#: Tokens of a node after a prefix up to which it attends to itself with the fused kernel, where
#: other nodes attend in batches.
_SHORT_NODE = 128

#: Tokens of a causal node from which products of one head are faster than the fused kernel.
_LONG_NODE = 512

#: Maximum number of logits computed at once: those of some heads, or at least of one.
_MAX_LOGITS = 1 << 21

#: Maximum ratio of the longest to the shortest piece of a batch, plus an absolute slack.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8

#: Maximum number of logits of one head computed at once, unless 256 queries have more.
_MAX_HEAD_LOGITS = 1 << 22

#: Fewer logits of a kv head over a shared prefix are left to the fused kernel.
_MIN_LOGITS = 1 << 18

#: Maximum number of spans of a shared prefix: the keys of deeper trees would be copied too often.
_MAX_SPANS = 8

_operators: Any = torch.ops.mkldnn


class QueryBatch(NamedTuple):
    """Pieces of nodes with about as many tokens and keys, which attend only to these keys.

    ``queries``, ``[pieces, queries]``, indexes the row and ``keys``, ``[pieces, keys]``, the keys;
    shorter pieces are padded by repeating their last token. ``bias``, ``[pieces or 1, queries or 1,
    last keys]``, is added to the logits of the last keys.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    bias: torch.Tensor | None


class _Node(NamedTuple):
    """A node's tokens in the row, their own keys, and the spans of the keys before them."""

    row: Span
    keys: Span
    path: tuple[Span, ...]


class _SharedPrefix(NamedTuple):
    """The row's tokens that attend to a shared prefix, and the spans of its keys."""

    rows: slice | torch.Tensor
    path: tuple[Span, ...]


class _Plan(NamedTuple):
    """How the tokens of a packed batch attend.

    Those of ``batches`` and of ``long_nodes`` attend to all their keys, those of ``nodes`` to their
    own, and in a second step to those of ``prefixes``. ``places`` has the place of each token of
    the row in the results of the first step; None if they are in order.
    """

    batches: Sequence[QueryBatch]
    long_nodes: Sequence[_Node]
    nodes: Sequence[_Node]
    prefixes: Sequence[_SharedPrefix]
    places: torch.Tensor | None


class _Piece(NamedTuple):
    queries: Span
    keys: tuple[Span, ...]


def _plan(
    batch: PackedBatch,
    device: torch.device,
    dtype: torch.dtype,
    causal: bool,
    window: Window | None,
    batched: bool,
) -> _Plan | None:
    """Plan the attention over a batch; None if its tree is too deep."""
    if window is not None:
        batches = list(_window_batches(batch, device, dtype, window))
        covered = [one.queries.flatten() for one in batches]
        return _Plan(batches, (), (), (), _places(covered, len(batch.ids), device))
    every = _nodes(batch)
    if every is None:
        return None
    batches, covered = [], []
    batched_nodes: list[_Node] = []
    long_nodes: list[_Node] = []
    nodes: list[_Node] = []
    for node in every:
        if batched and (not node.path or _length(node.row) > _SHORT_NODE):
            batched_nodes.append(node)
        elif causal and _length(node.row) >= _LONG_NODE:
            long_nodes.append(node)
        else:
            nodes.append(node)
    for pieces in _similar_pieces(batched_nodes, causal):
        batches.append(_query_batch(pieces, causal, device, dtype))
        covered.append(_covered([piece.queries for piece in pieces]))
    covered += (torch.arange(*node.row) for node in (*long_nodes, *nodes))
    places = _places(covered, len(batch.ids), device)
    return _Plan(batches, long_nodes, nodes, list(_shared_prefixes(nodes, device)), places)


def _places(
    covered: Sequence[torch.Tensor], num_tokens: int, device: torch.device
) -> torch.Tensor | None:
    """Return where each token of the row is among those covered; None if they are in order.

    Padding, which is -1 among those covered, is nowhere in the row.
    """
    tokens, row = torch.cat([one.cpu() for one in covered]), torch.arange(num_tokens)
    if torch.equal(tokens, row):
        return None
    is_token = tokens >= 0
    places = torch.empty_like(row)
    places[tokens[is_token]] = is_token.nonzero().squeeze(1)
    return places.to(device)


def _nodes(batch: PackedBatch) -> list[_Node] | None:
    """Return the nodes with tokens in the row; None if they have too many spans before them."""
    nodes: list[_Node] = []
    paths: list[tuple[int, tuple[Span, ...]]] = []
    for node in batch.nodes:
        while paths and paths[-1][0] <= node.row.start:
            paths.pop()
        path = paths[-1][1] if paths else ()
        if _length(node.row):
            nodes.append(_Node(node.row, node.keys, path))
        if node.subtree_end > node.row.end and _length(node.keys):
            if path and path[-1].end == node.keys.start:
                path = (*path[:-1], Span(path[-1].start, node.keys.end))
            else:
                path = (*path, node.keys)
            if len(path) > _MAX_SPANS:
                return None
            paths.append((node.subtree_end, path))
    return nodes


def _shared_prefixes(nodes: Sequence[_Node], device: torch.device) -> Iterator[_SharedPrefix]:
    """Yield the shared prefixes, each with all tokens of the nodes that follow it."""
    rows_after: dict[tuple[Span, ...], list[Span]] = {}
    for node in nodes:
        if node.path:
            rows = rows_after.setdefault(node.path, [])
            if rows and rows[-1].end == node.row.start:
                rows[-1] = Span(rows[-1].start, node.row.end)
            else:
                rows.append(node.row)
    for path, rows in rows_after.items():
        if len(rows) == 1:
            yield _SharedPrefix(slice(*rows[0]), path)
        else:
            yield _SharedPrefix(torch.cat([torch.arange(*one) for one in rows]).to(device), path)


def _pieces(node: _Node, causal: bool) -> Iterator[_Piece]:
    """Yield the pieces of a node, each with all the keys that any of its queries attends to."""
    for start in range(0, _length(node.row), _PIECE_SIZE):
        end = min(start + _PIECE_SIZE, _length(node.row))
        own = Span(node.keys.start, node.keys.start + end) if causal else node.keys
        yield _Piece(Span(node.row.start + start, node.row.start + end), (*node.path, own))


def _similar_pieces(nodes: Sequence[_Node], causal: bool) -> Iterator[list[_Piece]]:
    """Yield lists of pieces with about as many queries and keys.

    The queries of a list's causal pieces come after equally many keys.
    """
    by_size: dict[int, list[_Piece]] = {}
    for node in nodes:
        for piece in _pieces(node, causal):
            num_before = _num_keys(piece) - _length(piece.queries) if causal else 0
            by_size.setdefault(num_before, []).append(piece)
    for alike in by_size.values():
        alike.sort(key=lambda piece: (_num_keys(piece), _length(piece.queries)))
        batch: list[_Piece] = []
        longest = 0
        for piece in alike:
            longest = max(longest, _length(piece.queries))
            if batch and (
                not _is_similar(_length(batch[0].queries), _length(piece.queries))
                or not _is_similar(_num_keys(batch[0]), _num_keys(piece))
                or (len(batch) + 1) * longest * _num_keys(piece) > _MAX_LOGITS
            ):
                yield batch
                batch, longest = [], _length(piece.queries)
            batch.append(piece)
        yield batch


def _is_similar(one: int, other: int) -> bool:
    return max(one, other) <= _MAX_WASTE * min(one, other) + _FREE_TOKENS


def _query_batch(
    pieces: Sequence[_Piece], causal: bool, device: torch.device, dtype: torch.dtype
) -> QueryBatch:
    queries = _padded([torch.arange(*piece.queries) for piece in pieces])
    keys = _padded([torch.cat([torch.arange(*one) for one in piece.keys]) for piece in pieces])
    bias = None
    if causal:
        # Padding comes last, so no token attends to it.
        mask = torch.ones(queries.shape[1], queries.shape[1], dtype=torch.bool).tril()
        bias = mask_to_bias(mask.unsqueeze(0), dtype).to(device)
    else:
        lengths = torch.tensor([_num_keys(piece) for piece in pieces])
        mask = torch.arange(keys.shape[1]) < lengths.unsqueeze(1)
        bias = None if bool(mask.all()) else mask_to_bias(mask.unsqueeze(1), dtype).to(device)
    return QueryBatch(queries.to(device), keys.to(device), bias)


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return indices, ``[rows, longest]``, with the last one of each row repeated."""
    longest = max(map(len, rows))
    return torch.stack([torch.cat([one, one[-1:].expand(longest - len(one))]) for one in rows])


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
    return QueryBatch(queries, keys, None if bias is None else bias.unsqueeze(0))


def _length(span: Span) -> int:
    return span.end - span.start


def _num_keys(piece: _Piece) -> int:
    return sum(map(_length, piece.keys))


class MatmulBackend:
    """Attends to shared prefixes with matrix products, head by head, on a CPU.

    With ``batched``, tokens within a window, of nodes without a prefix and of longer ones attend
    with batched products, nodes of about one length together. Other nodes attend to their own keys
    with the fused kernel, long causal ones head by head. Logits are computed in the dtype of the
    queries.
    """

    def __init__(self, *, batched: bool) -> None:
        self.name = "alarm_matmul" if batched else "alarm_prefix_matmul"
        self._batched = batched
        self._fused = SdpaBackend()

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the device is a CPU, with a dtype that oneDNN may multiply."""
        return device.type == "cpu" and dtype in (torch.float32, torch.bfloat16, torch.float16)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """See `alarm_models.modeling.packed.attention.AttentionBackend.attend`."""
        plan = None
        if self._batched or params.window is None:
            plan = context.derived(
                _plan, query.device, query.dtype, params.causal, params.window, self._batched
            )
        if plan is None:
            return self._fused.attend(query, key, value, context, params)
        # A query's heads are contiguous, and are gathered in one piece.
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
        parts = [_attend_batch(queries, keys, values, one, params) for one in plan.batches]
        parts += (_attend_long_node(query, key, value, one, params) for one in plan.long_nodes)
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # [1, heads, tokens]
        for node in plan.nodes:
            own = _attend_node(query, key, value, node, params)
            lse[:, :, slice(*node.row)] = own.lse
            parts.append(own.out[0].transpose(0, 1))
        out = torch.cat(parts)  # [tokens, heads, dim]
        if plan.places is not None:
            out = out.index_select(0, plan.places)
        target = AttentionOutput(out.transpose(0, 1).unsqueeze(0), lse)
        for prefix in plan.prefixes:
            _attend_prefix(query, key, value, target, prefix, params)
        return out.unsqueeze(0)


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
    step = max(_MAX_LOGITS // (pieces * groups * length * batch.keys.shape[1]), 1)
    parts = [
        _attend_heads(queries[some], keys[some], values[some], batch.bias, groups, params)
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
    bias: torch.Tensor | None,
    groups: int,
    params: AttentionParams,
) -> torch.Tensor:
    """Attend for some heads; return ``[heads * pieces, queries, dim]``.

    ``queries`` are ``[heads, pieces, queries, dim]``, those of ``groups`` heads one after another;
    ``keys`` and ``values`` are ``[heads, pieces, keys, dim]``.
    """
    queries, keys, values = (some.flatten(0, 1) for some in (queries, keys, values))
    zero = queries.new_zeros(())
    logits = torch.baddbmm(zero, queries, keys.transpose(1, 2), beta=0, alpha=params.scale)
    _cap(logits, params)
    if bias is not None:
        of_last = logits[..., -bias.shape[-1] :]
        by_head = of_last.view(-1, len(bias), groups, of_last.shape[1] // groups, bias.shape[-1])
        by_head.add_(bias.unsqueeze(1))
    return torch.bmm(torch.softmax(logits, -1), values)


def _cap(logits: torch.Tensor, params: AttentionParams) -> None:
    if params.softcap is not None:
        logits.div_(params.softcap).tanh_().mul_(params.softcap)


def _attend_node(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    node: _Node,
    params: AttentionParams,
) -> AttentionOutput:
    """Attend from a node's tokens to its own keys; ``[1, heads, tokens, dim]`` each."""
    rows, keys = slice(*node.row), slice(*node.keys)
    return attend(
        query[:, :, rows],
        key[:, :, keys],
        value[:, :, keys],
        params.scale,
        causal=params.causal,
        softcap=params.softcap,
    )


def _attend_long_node(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    node: _Node,
    params: AttentionParams,
) -> torch.Tensor:
    """Attend causally from a node's tokens to all of their keys; ``[tokens, heads, dim]``."""
    num_heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    keys, values = (_of_spans(some, (*node.path, node.keys))[0] for some in (key, value))
    keys, values = keys.contiguous(), values.transpose(1, 2).contiguous()
    mask = torch.ones(_PIECE_SIZE, _PIECE_SIZE, dtype=torch.bool, device=query.device).tril()
    bias = mask_to_bias(mask, query.dtype)
    parts = []
    for piece in _pieces(node, causal=True):
        length, num_keys = _length(piece.queries), _num_keys(piece)
        queries = _by_kv_head(query[0, :, slice(*piece.queries)], len(keys), params)
        of_piece = values[..., :num_keys].contiguous()
        out = []
        for rows, columns, of_head in zip(queries, keys, of_piece, strict=True):
            logits = _logits(rows, columns[:num_keys], params)
            of_last = logits[:, num_keys - length :].view(groups, length, length)
            of_last.add_(bias[:length, :length])
            out.append(_product(torch.softmax(logits, -1, out=logits), of_head))
        parts.append(torch.stack(out).view(num_heads, length, -1).transpose(0, 1))
    return torch.cat(parts)


def _of_spans(states: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """Return the tokens in spans of ``[1, heads, tokens, dim]``."""
    if len(spans) == 1:
        return states[:, :, slice(*spans[0])]
    return torch.cat([states[:, :, slice(*span)] for span in spans], 2)


def _attend_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: AttentionOutput,
    prefix: _SharedPrefix,
    params: AttentionParams,
) -> None:
    """Merge attention to a shared prefix into the target, which has that to the own nodes."""
    queries = query[:, :, prefix.rows]
    keys, values = (_of_spans(some, prefix.path) for some in (key, value))
    own = AttentionOutput(target.out[:, :, prefix.rows], target.lse[:, :, prefix.rows])
    num_rows = queries.shape[1] // keys.shape[1] * queries.shape[2]
    if num_rows * keys.shape[2] < _MIN_LOGITS:
        over_prefix = attend(queries, keys, values, params.scale, softcap=params.softcap)
        target.out[:, :, prefix.rows] = merge_attention(own, over_prefix).out
    else:
        target.out[:, :, prefix.rows] = _attend_by_head(queries, keys, values, own, params)


def _attend_by_head(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    own: AttentionOutput,
    params: AttentionParams,
) -> torch.Tensor:
    """Attend to keys and merge the result with that of other keys, in one softmax.

    ``query`` and ``own.out`` are ``[1, heads, queries, dim]``, ``key`` and ``value`` ``[1,
    kv heads, keys, dim]``. The other keys take part as one more key, whose logits are their
    log-sum-exp.
    """
    (_, num_heads, num_queries, dim), (_, num_kv_heads, num_keys, _) = query.shape, key.shape
    queries = _by_kv_head(query[0], num_kv_heads, params)
    own_lse = own.lse[0].reshape(num_kv_heads, -1)  # [kv heads, queries], in float32
    rounded_lse = own_lse.to(query.dtype)
    keys = key.new_empty(num_kv_heads, num_keys + 1, dim)
    keys[:, :-1], keys[:, -1] = key[0], 0
    values = value.new_empty(num_kv_heads, dim, num_keys + 1)
    values[..., :-1], values[..., -1] = value[0].transpose(1, 2), 0
    size = max(_MAX_HEAD_LOGITS // (num_keys + 1), _PIECE_SIZE)
    over_keys, own_weights = torch.empty_like(queries), torch.empty_like(own_lse)
    for head, (columns, of_head) in enumerate(zip(keys, values, strict=True)):
        for rows in (slice(at, at + size) for at in range(0, queries.shape[1], size)):
            logits = _logits(queries[head, rows], columns, params)
            logits[:, -1] = rounded_lse[head, rows]
            weights = torch.softmax(logits, -1, out=logits)
            over_keys[head, rows] = _product(weights, of_head)
            own_weights[head, rows] = weights[:, -1]
    # The rounding of a log-sum-exp would change the weights of all own keys alike.
    unrounded = own_weights * torch.exp(own_lse - rounded_lse)
    total = 1 - own_weights + unrounded
    shape = (1, num_heads, num_queries, -1)
    share_of_keys, share_of_own = (
        some.to(query.dtype).view(shape) for some in (1 / total, unrounded / total)
    )
    return over_keys.view(shape) * share_of_keys + own.out * share_of_own


def _by_kv_head(query: torch.Tensor, num_kv_heads: int, params: AttentionParams) -> torch.Tensor:
    """Scale queries ``[heads, queries, dim]``; return one matrix of rows for each kv head."""
    return (query * params.scale).contiguous().view(num_kv_heads, -1, query.shape[-1])


def _logits(queries: torch.Tensor, keys: torch.Tensor, params: AttentionParams) -> torch.Tensor:
    """Return the logits of scaled queries of one kv head, ``[queries of all its heads, keys]``."""
    logits = _product(queries, keys)
    _cap(logits, params)
    return logits


def _product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Multiply ``[m, k]`` and ``[n, k]``, both contiguous, to ``[m, n]``.

    In float32 oneDNN's linear layer is faster than `torch.mm` (see `linear_kernels`). Operands that
    are not contiguous would be multiplied by a reference kernel, a thousand times as slow.
    """
    product: torch.Tensor = _operators._linear_pointwise(rows, columns, None, "none", [], "")
    return product
