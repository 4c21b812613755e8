"""The attention backend: how a transformer attends over a packed batch.

A backend is found by transformers' models under its name; the probe (`backend_selection`) chooses
the fastest exact one: `varlen.VarlenBackend`, else `sdpa.SdpaBackend`. What is the same for all,
attention for read positions alone, is here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, Protocol

import torch
from transformers import AttentionInterface, PreTrainedModel

from alarm_models.modeling.packed.batch import ForwardContext, PackedBatch, get_forward_context
from alarm_models.modeling.packed.sdpa import AttentionParams, Window, attend, mask_to_bias
from alarm_models.types import Span

__all__ = [
    "AttentionBackend",
    "ReadBatch",
    "attend_reads",
    "group_reads",
    "use_attention_backend",
]


class AttentionBackend(Protocol):
    """A way to attend over a packed batch, all of whose tokens are queries."""

    @property
    def name(self) -> str:
        """What transformers' models and the log call it."""

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Say whether it runs there, in that precision."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        context: ForwardContext,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Attend from the row's tokens to the batch's keys, each within its sample.

        ``query`` is ``[1, heads, tokens, dim]``, ``key`` and ``value`` ``[1, heads, keys, dim]`` of
        as many heads or fewer; returns ``[1, tokens, heads, dim]``. Raises `ValueError` for what
        the backend cannot do.
        """


def use_attention_backend(model: PreTrainedModel, backend: AttentionBackend) -> None:
    """Have a model's layers attend by a backend, over the batch of the forward context."""
    AttentionInterface.register(backend.name, partial(_attention_function, backend))
    model.set_attn_implementation(backend.name)


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

    ``sliding_window`` counts the tokens that a token sees on a side, itself among them.
    """
    context = get_forward_context()
    key, value = context.with_cached_kv(module, key, value)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = None
    if sliding_window is not None and context.batch.is_cut_by(sliding_window):
        window = Window(sliding_window - 1, 0 if causal else sliding_window - 1)
    params = AttentionParams(scaling or query.shape[-1] ** -0.5, causal, window, softcap)
    return backend.attend(query, key, value, context, params), None


#: The most keys gathered at once: beyond, copying them costs more than the calls it saves.
_MAX_KEYS = 8192

#: How much longer than its shortest sample a read batch's longest may be, and tokens beside.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class ReadBatch(NamedTuple):
    """Some samples' reads, and the keys that they attend to.

    ``queries`` is ``[samples, reads]``, numbers of reads; ``keys`` is ``[samples, keys]``, where
    keys are; ``mask``, ``[samples, 1, reads, keys]``, is true where a read sees a key, None for
    all. Where samples differ in number the last read and the first key are repeated.
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
    """Yield read batches that together cover all reads, (sample, place in it), sorted by sample.

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
    """Attend for the running batch's reads alone, over the keys of their samples' tokens.

    ``query`` is ``[1, heads, reads, dim]``; returns ``[1, reads, heads, dim]``. ``window`` counts
    the tokens that a token sees on a side, itself among them.
    """
    context = get_forward_context()
    key, value = context.with_cached_kv(module, key, value)
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(query.transpose(1, 2).shape)
    read_batches = group_reads(
        context.batch, context.reads, causal=causal, window=window, device=query.device
    )
    for reads in read_batches:
        keys, values = (_gather_tokens(states, reads.keys, groups) for states in (key, value))
        queries = query[0][:, reads.queries].transpose(0, 1)  # [batch, heads, queries, dim]
        bias = None if reads.mask is None else mask_to_bias(reads.mask, query.dtype)
        attended = attend(queries, keys, values, scale, bias=bias).out
        out[0, reads.queries] = attended.transpose(1, 2)
    return out


def _gather_tokens(states: torch.Tensor, places: torch.Tensor, times: int) -> torch.Tensor:
    """Take the tokens at ``[batch, keys]`` from ``[1, heads, tokens, dim]``, each head so often.

    Returns ``[batch, heads * times, keys, dim]``. A token's heads are contiguous and copied in
    one piece.
    """
    tokens = states[0].transpose(0, 1)  # [tokens, heads, dim]
    rows = tokens.index_select(0, places.flatten())
    taken = rows.view(*places.shape, *tokens.shape[1:]).transpose(1, 2)
    return taken if times == 1 else taken.repeat_interleave(times, 1)
