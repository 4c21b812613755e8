"""The attention backend: how a transformer attends over a packed batch.

Backends are registered with transformers by name. The probe (`backend_selection`) selects the
fastest exact one: `varlen.VarlenBackend`, else `sdpa.SdpaBackend`. Attention for read positions
alone does not depend on the backend and is implemented here.
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
    """Set a model's attention backend; it attends over the batch of the forward context."""
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

    ``sliding_window`` counts the tokens visible on each side, including the token itself.
    """
    context = get_forward_context()
    key, value = context.with_cached_kv(module, key, value)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window = None
    if sliding_window is not None and context.derived(PackedBatch.is_cut_by, sliding_window):
        window = Window(sliding_window - 1, 0 if causal else sliding_window - 1)
    params = AttentionParams(scaling or query.shape[-1] ** -0.5, causal, window, softcap)
    return backend.attend(query, key, value, context, params), None


#: Maximum number of keys gathered at once; beyond it, copying costs more than the calls saved.
_MAX_KEYS = 8192

#: Maximum ratio of the longest to the shortest sample of a read batch, plus an absolute slack.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class ReadBatch(NamedTuple):
    """The read positions of some samples, and the keys that they attend to.

    ``queries``, ``[samples, reads]``, indexes the reads; ``keys``, ``[samples, keys]``, indexes the
    keys; ``mask``, ``[samples, 1, reads, keys]``, is true where a read may attend to a key, None
    for everywhere. Shorter samples are padded by repeating the last read and the first key.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


class _SampleReads(NamedTuple):
    queries: list[int]
    keys: list[int]
    #: The keys that each read attends to, as a span of ``keys``.
    visible: list[Span]


def group_reads(
    layout: PackedBatch,
    reads: Sequence[tuple[int, int]],
    *,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Iterator[ReadBatch]:
    """Yield read batches that cover all reads: (sample, position in it), sorted by sample.

    ``window`` counts the tokens visible on each side, including the token itself.
    """
    samples = [
        _sample_reads(layout, sample, list(indexed_reads), causal, window)
        for sample, indexed_reads in groupby(enumerate(reads), key=lambda read: read[1][0])
    ]
    samples.sort(key=lambda sample: len(sample.keys))
    batch: list[_SampleReads] = []
    for sample in samples:
        if batch and not _fits(batch, sample):
            yield _read_batch(batch, device)
            batch = []
        batch.append(sample)
    if batch:
        yield _read_batch(batch, device)


def _sample_reads(
    layout: PackedBatch,
    sample: int,
    indexed_reads: Sequence[tuple[int, tuple[int, int]]],
    causal: bool,
    window: int | None,
) -> _SampleReads:
    positions = [position for _, (_, position) in indexed_reads]
    length = max(positions) + 1 if causal else layout.length(sample)
    reach = length if window is None else window
    visible = [
        Span(
            max(position + 1 - reach, 0), position + 1 if causal else min(position + reach, length)
        )
        for position in positions
    ]
    keys = layout.keys(sample, Span(0, length))
    return _SampleReads([number for number, _ in indexed_reads], keys, visible)


def _fits(batch: Sequence[_SampleReads], sample: _SampleReads) -> bool:
    num_keys = len(sample.keys)
    return (
        num_keys <= _MAX_WASTE * len(batch[0].keys) + _FREE_TOKENS
        and num_keys * (len(batch) + 1) <= _MAX_KEYS
    )


def _read_batch(samples: Sequence[_SampleReads], device: torch.device) -> ReadBatch:
    num_reads = max(len(sample.queries) for sample in samples)
    num_keys = len(samples[-1].keys)
    queries, keys, visible = [], [], []
    for sample in samples:
        num_missing = num_reads - len(sample.queries)
        queries.append(sample.queries + sample.queries[-1:] * num_missing)
        visible.append(sample.visible + sample.visible[-1:] * num_missing)
        keys.append(sample.keys + sample.keys[:1] * (num_keys - len(sample.keys)))
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
    the tokens visible on each side, including the token itself.
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


def _gather_tokens(states: torch.Tensor, indices: torch.Tensor, num_repeats: int) -> torch.Tensor:
    """Gather the tokens at ``[batch, keys]`` from ``[1, heads, tokens, dim]``; repeat each head.

    Returns ``[batch, heads * times, keys, dim]``. A token's heads are contiguous and copied in
    one piece.
    """
    tokens = states[0].transpose(0, 1)  # [tokens, heads, dim]
    rows = tokens.index_select(0, indices.flatten())
    gathered = rows.view(*indices.shape, *tokens.shape[1:]).transpose(1, 2)
    return gathered if num_repeats == 1 else gathered.repeat_interleave(num_repeats, 1)
