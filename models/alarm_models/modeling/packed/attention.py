"""The attention backend: how a transformer attends over a packed batch.

Backends are registered with transformers by name. The probe (`backend_selection`) selects the
fastest exact one: `varlen.VarlenBackend` on a GPU, `compiled.CompiledBackend` on a CPU, else
`sdpa.SdpaBackend`. Attention for read positions alone does not depend on the backend and is
implemented here.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

from alarm_models.modeling.packed.batch import (
    ForwardContext,
    PackedBatch,
    PrefixNode,
    get_forward_context,
)
from alarm_models.modeling.packed.sdpa import (
    AttentionOutput,
    AttentionParams,
    Window,
    attend,
    mask_to_bias,
    merge_attention,
)
from alarm_models.types import Span

__all__ = [
    "AttentionBackend",
    "ReadBatch",
    "attend_reads",
    "group_reads",
    "refuse_shared_prefixes",
    "use_attention_backend",
]


class AttentionBackend(Protocol):
    """Attention over a packed batch in which every token is a query."""

    @property
    def name(self) -> str:
        """The name in transformers' registry and in the log."""

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether the backend runs on this device with this dtype."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Attend from the row's tokens to the batch's keys, each within its sample.

        ``query`` is ``[1, heads, tokens, dim]``, ``key`` and ``value`` are ``[1, heads, keys,
        dim]`` with the same number of heads or fewer; returns ``[1, tokens, heads, dim]``. Raises
        `ValueError` for unsupported parameters.
        """


def use_attention_backend(model: PreTrainedModel, backend: AttentionBackend) -> None:
    """Set a model's attention backend; it attends over the batch of the forward context.

    Raises `ValueError` for a model whose attention is its own.
    """
    AttentionInterface.register(backend.name, partial(_attention_function, backend))
    model.set_attn_implementation(backend.name)
    config: Any = model.config
    if config._attn_implementation != backend.name:
        raise ValueError(f"{type(model).__name__} does not support other attention functions")


def _attention_function(
    backend: AttentionBackend,
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
    """Attend as transformers' attention functions do.

    ``sliding_window`` counts the tokens visible on each side, including the token itself.
    """
    context = get_forward_context()
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if not causal:
        refuse_shared_prefixes(context)
    key, value = context.with_cached_kv(module, key, value)
    window = None
    if sliding_window is not None:
        context.windows.add(sliding_window)
    if sliding_window is not None and context.derived(PackedBatch.is_cut_by, sliding_window):
        window = Window(sliding_window - 1, 0 if causal else sliding_window - 1)
    params = AttentionParams(scaling or query.shape[-1] ** -0.5, causal, window, softcap)
    return backend.attend(query, key, value, context, params), None


def refuse_shared_prefixes(context: ForwardContext) -> None:
    """Raise `ValueError` for a shared prefix, whose tokens should attend to what follows it.

    The probes compare outputs, and the error may be within the tolerance of a 16-bit dtype.
    """
    if context.batch.is_shared:
        raise ValueError("bidirectional attention cannot share prefixes")


#: Maximum number of keys gathered at once; beyond it, copying costs more than the calls saved.
_MAX_KEYS = 8192

#: Maximum ratio of the longest to the shortest node of a read batch, plus an absolute slack.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class ReadBatch(NamedTuple):
    """The read positions in some nodes, and the keys of these nodes that they attend to.

    ``queries``, ``[nodes, reads]``, indexes the reads; ``keys``, ``[nodes, keys]``, indexes the
    keys; ``mask``, ``[nodes, 1, reads, keys]``, is true where a read may attend to a key, None for
    everywhere. Shorter nodes are padded by repeating the last read and the first key.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


class _NodeReads(NamedTuple):
    queries: list[int]
    keys: range
    #: The keys that each read attends to, as a span of ``keys``.
    visible: list[Span]


def group_reads(
    layout: PackedBatch,
    places: Sequence[int],
    *,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Iterator[ReadBatch]:
    """Yield read batches of all reads over the keys of their own nodes.

    ``places`` are the reads' indices in the row. ``window`` counts the tokens visible on each side,
    including the token itself.
    """
    by_node: dict[int, list[int]] = {}
    numbers: list[int] = []
    row = Span(0, 0)
    for number, place in enumerate(places):
        # Most reads are in the same node as the one before.
        if not row.start <= place < row.end:
            index = bisect_right(layout.nodes, place, key=_first_row) - 1
            row, numbers = layout.nodes[index].row, by_node.setdefault(index, [])
        numbers.append(number)
    nodes = [
        _node_reads(layout.nodes[index], numbers, places, causal, window)
        for index, numbers in by_node.items()
    ]
    nodes.sort(key=lambda node: len(node.keys))
    batch: list[_NodeReads] = []
    for node in nodes:
        if batch and not _fits(batch, node):
            yield _read_batch(batch, device)
            batch = []
        batch.append(node)
    if batch:
        yield _read_batch(batch, device)


def _first_row(node: PrefixNode) -> int:
    return node.row.start


def _node_reads(
    node: PrefixNode,
    numbers: list[int],
    places: Sequence[int],
    causal: bool,
    window: int | None,
) -> _NodeReads:
    if not causal and window is None:
        every = Span(0, node.row.end - node.row.start)
        keys = range(node.keys.start, node.keys.start + every.end)
        return _NodeReads(numbers, keys, [every] * len(numbers))
    positions = [places[number] - node.row.start for number in numbers]
    length = max(positions) + 1 if causal else node.row.end - node.row.start
    reach = length if window is None else window
    visible = [
        Span(
            max(position + 1 - reach, 0), position + 1 if causal else min(position + reach, length)
        )
        for position in positions
    ]
    return _NodeReads(numbers, range(node.keys.start, node.keys.start + length), visible)


def _fits(batch: Sequence[_NodeReads], node: _NodeReads) -> bool:
    num_keys = len(node.keys)
    return (
        num_keys <= _MAX_WASTE * len(batch[0].keys) + _FREE_TOKENS
        and num_keys * (len(batch) + 1) <= _MAX_KEYS
    )


def _read_batch(nodes: Sequence[_NodeReads], device: torch.device) -> ReadBatch:
    num_reads = max(len(node.queries) for node in nodes)
    num_keys = len(nodes[-1].keys)
    queries, keys, visible = [], [], []
    for node in nodes:
        num_missing = num_reads - len(node.queries)
        queries.append(node.queries + node.queries[-1:] * num_missing)
        visible.append(node.visible + node.visible[-1:] * num_missing)
        keys.append([*node.keys, *[node.keys[0]] * (num_keys - len(node.keys))])
    mask = None
    if any(span != (0, num_keys) for spans in visible for span in spans):
        position = torch.arange(num_keys, device=device)
        low, high = torch.tensor(visible, device=device).unsqueeze(-1).unbind(-2)
        mask = ((position >= low) & (position < high)).unsqueeze(1)
    return ReadBatch(torch.tensor(queries, device=device), torch.tensor(keys, device=device), mask)


def attend_reads(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attend from the running batch's reads alone to the keys of their samples.

    ``query`` is ``[1, heads, reads, dim]``; returns ``[1, reads, heads, dim]``. ``window`` counts
    the tokens visible on each side, including the token itself. All reads after a shared prefix
    attend to it in one call, so its keys are not copied for each sample.
    """
    context = get_forward_context()
    if not causal:
        refuse_shared_prefixes(context)
    key, value = context.with_cached_kv(module, key, value)
    is_shared = context.batch.is_shared
    # Merged in float32, so that a read's error does not grow with the number of its prefixes.
    dtype = torch.float32 if is_shared else query.dtype
    out = query.new_empty(query.transpose(1, 2).shape, dtype=dtype)
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # [1, heads, reads]
    read_batches = group_reads(
        context.batch, context.read_places, causal=causal, window=window, device=query.device
    )
    for reads in read_batches:
        keys, values = (_gather_tokens(states, reads.keys) for states in (key, value))
        queries = query[0][:, reads.queries].transpose(0, 1)  # [batch, heads, queries, dim]
        bias = None if reads.mask is None else mask_to_bias(reads.mask, query.dtype)
        attended = attend(queries, keys, values, scale, bias=bias)
        out[0, reads.queries] = attended.out.transpose(1, 2).to(dtype)
        lse[0][:, reads.queries] = attended.lse.transpose(0, 1)
    if not is_shared:
        return out
    order = sorted(range(len(context.read_places)), key=context.read_places.__getitem__)
    places = [context.read_places[number] for number in order]
    for node in context.batch.nodes:
        after = order[bisect_left(places, node.row.end) : bisect_left(places, node.subtree_end)]
        if after and node.keys.end > node.keys.start:
            prefix = slice(*node.keys)
            over_prefix = attend(query[:, :, after], key[:, :, prefix], value[:, :, prefix], scale)
            over_own = AttentionOutput(out[:, after].transpose(1, 2), lse[:, :, after])
            merged = merge_attention(over_own, over_prefix)
            out[:, after], lse[:, :, after] = merged.out.transpose(1, 2), merged.lse
    return out.to(query.dtype)


def _gather_tokens(states: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Gather the tokens at ``[batch, keys]`` from ``[1, heads, tokens, dim]``.

    Returns ``[batch, heads, keys, dim]``. A token's heads are contiguous and copied in one piece.
    """
    tokens = states[0].transpose(0, 1)  # [tokens, heads, dim]
    rows = tokens.index_select(0, indices.flatten())
    return rows.view(*indices.shape, *tokens.shape[1:]).transpose(1, 2)
