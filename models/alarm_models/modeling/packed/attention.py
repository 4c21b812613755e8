"""The SDPA attention backend of packed batches, and attention for read positions alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from alarm_models.modeling.packed.batch import PackedBatch, get_forward_context
from alarm_models.modeling.packed.kernels import (
    AttentionOutput,
    Window,
    attend,
    attend_blocks,
    mask_to_bias,
    merge_attention,
    window_blocks,
)
from alarm_models.types import Span

__all__ = ["PACKED", "ReadBatch", "attend_reads", "group_reads", "packed_attention"]

#: The most keys gathered at once: beyond, copying them costs more than the calls it saves.
_MAX_KEYS = 8192

#: How much longer than the shortest sample of a reading the longest may be, and tokens beside.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class ReadBatch(NamedTuple):
    """Some samples' reads, and the keys that they look among.

    ``queries`` is ``[samples, reads]``, numbers of reads; ``keys`` is ``[samples, keys]``, where
    keys stand; ``mask``, ``[samples, 1, reads, keys]``, is true where a read sees a key, None for
    all.
    Where samples differ in number the last read and the first key are repeated.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


class _SampleReads(NamedTuple):
    queries: list[int]
    keys: list[int]
    #: The keys that each read sees, as a span of ``keys``.
    seen: list[Span]


def group_reads(
    layout: PackedBatch,
    reads: Sequence[tuple[int, int]],
    *,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Iterator[ReadBatch]:
    """Yield readings that together cover all reads, (sample, place in it), sorted by sample.

    ``window`` counts the tokens that a token sees on a side, itself among them.
    """
    samples = [
        _sample_reads(layout, sample, list(numbered), causal, window)
        for sample, numbered in groupby(enumerate(reads), key=lambda read: read[1][0])
    ]
    samples.sort(key=lambda sample: len(sample.keys))
    together: list[_SampleReads] = []
    for sample in samples:
        if together and not _fits(together, sample):
            yield _read_batch(together, device)
            together = []
        together.append(sample)
    if together:
        yield _read_batch(together, device)


def _sample_reads(
    layout: PackedBatch,
    sample: int,
    numbered: Sequence[tuple[int, tuple[int, int]]],
    causal: bool,
    window: int | None,
) -> _SampleReads:
    places = [place for _, (_, place) in numbered]
    length = max(places) + 1 if causal else layout.length(sample)
    reach = length if window is None else window
    seen = [
        Span(max(place + 1 - reach, 0), place + 1 if causal else min(place + reach, length))
        for place in places
    ]
    keys = layout.keys(sample, Span(0, length))
    return _SampleReads([number for number, _ in numbered], keys, seen)


def _fits(together: Sequence[_SampleReads], sample: _SampleReads) -> bool:
    num_keys = len(sample.keys)
    return (
        num_keys <= _MAX_WASTE * len(together[0].keys) + _FREE_TOKENS
        and num_keys * (len(together) + 1) <= _MAX_KEYS
    )


def _read_batch(samples: Sequence[_SampleReads], device: torch.device) -> ReadBatch:
    num_reads = max(len(sample.queries) for sample in samples)
    num_keys = len(samples[-1].keys)
    queries, keys, seen = [], [], []
    for sample in samples:
        more = num_reads - len(sample.queries)
        queries.append(sample.queries + sample.queries[-1:] * more)
        seen.append(sample.seen + sample.seen[-1:] * more)
        keys.append(sample.keys + sample.keys[:1] * (num_keys - len(sample.keys)))
    mask = None
    if any(span != (0, num_keys) for spans in seen for span in spans):
        place = torch.arange(num_keys, device=device)
        low, high = torch.tensor(seen, device=device).unsqueeze(-1).unbind(-2)
        mask = ((place >= low) & (place < high)).unsqueeze(1)
    return ReadBatch(torch.tensor(queries, device=device), torch.tensor(keys, device=device), mask)


#: The name under which transformers' models find our attention.
PACKED = "alarm_packed"


def packed_attention(
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
    """Attend as transformers' attention functions do: ``[1, heads, tokens, dim]`` in.

    Returns ``[1, tokens, heads, dim]``. ``sliding_window`` counts the tokens that a token sees on
    a side, itself among them; ``softcap`` is Gemma 2's.
    """
    row = get_forward_context()
    layout = row.batch
    key, value = row.with_cached_kv(module, key, value)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = scaling or query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = query.new_empty(query.transpose(1, 2).shape)  # [1, tokens, heads, dim]
    target = out.transpose(1, 2)
    if sliding_window is not None and layout.is_cut_by(sliding_window):
        band = Window(sliding_window - 1, 0 if causal else sliding_window - 1)
        blocks = row.cached(window_blocks, query.device, query.dtype, band)
        attend_blocks(query, key, value, target, scale, blocks, softcap)
    else:
        _attend_nodes(query, key, value, target, layout, scale, causal, softcap)
    return out, None


def _attend_nodes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: torch.Tensor,
    layout: PackedBatch,
    scale: float,
    causal: bool,
    softcap: float | None,
) -> None:
    lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # [1, heads, tokens]
    for run in layout.nodes:
        if run.row.start == run.row.end:
            continue
        own, keys = slice(*run.row), slice(*run.keys)
        target[:, :, own], lse[:, :, own] = attend(
            query[:, :, own],
            key[:, :, keys],
            value[:, :, keys],
            scale,
            causal=causal,
            softcap=softcap,
        )
    if not layout.is_shared:
        return
    for run in layout.nodes:
        # Parents come before their continuations, whose own part is there by now.
        if run.subtree_end > run.row.end and run.keys.end > run.keys.start:
            keys, after = slice(*run.keys), slice(run.row.end, run.subtree_end)
            seen = attend(
                query[:, :, after], key[:, :, keys], value[:, :, keys], scale, softcap=softcap
            )
            mine = AttentionOutput(target[:, :, after], lse[:, :, after])
            target[:, :, after], lse[:, :, after] = merge_attention(mine, seen)


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
    """Attend for the current row's reads alone, over the keys of their samples' tokens.

    ``query`` is ``[1, heads, reads, dim]``; returns ``[1, reads, heads, dim]``. ``window`` is as in
    `packed_attention`.
    """
    row = get_forward_context()
    key, value = row.with_cached_kv(module, key, value)
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(query.transpose(1, 2).shape)
    some_reads = group_reads(
        row.batch, row.reads, causal=causal, window=window, device=query.device
    )
    for some in some_reads:
        keys, values = (_gather_tokens(states, some.keys, groups) for states in (key, value))
        queries = query[0][:, some.queries].transpose(0, 1)  # [batch, heads, queries, dim]
        bias = None if some.mask is None else mask_to_bias(some.mask, query.dtype)
        attended = attend(queries, keys, values, scale, bias=bias).out
        out[0, some.queries] = attended.transpose(1, 2)
    return out


def _gather_tokens(states: torch.Tensor, places: torch.Tensor, times: int) -> torch.Tensor:
    """Take the tokens at ``[batch, keys]`` from ``[1, heads, tokens, dim]``, each head so often.

    Returns ``[batch, heads * times, keys, dim]``. A token's heads lie side by side and are copied
    in one piece.
    """
    tokens = states[0].transpose(0, 1)  # [tokens, heads, dim]
    rows = tokens.index_select(0, places.flatten())
    taken = rows.view(*places.shape, *tokens.shape[1:]).transpose(1, 2)
    return taken if times == 1 else taken.repeat_interleave(times, 1)


AttentionInterface.register(PACKED, packed_attention)
