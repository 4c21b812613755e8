"""Backend selection: the fastest backbone and attention backend that are exact, by probing.

The reference is transformers alone: one sample at a time, nothing kept from one to the next. What
is faster is tried on what it will be given: packed batches, shared prefixes, the prefix cache,
padding. Whatever is not exact is not used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inputs import BatchLayout, ModelInput, ReadStates
from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.last_layer import prune_last_layer, restore_last_layer
from alarm_models.modeling.packed.positions import (
    Lengths,
    ModuleState,
    PositionTables,
    first_position,
    lengths_of,
)
from alarm_models.modeling.packed.sdpa import SdpaBackend
from alarm_models.modeling.packed.varlen import VarlenBackend
from alarm_models.modeling.padded import PaddedBackbone, PaddingPolicy
from alarm_models.types import Span

__all__ = ["ATTENTION_BACKENDS", "Backbone", "RunPadded", "probe_padding", "select_backend"]

#: The attention backends, the fastest first.
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = (VarlenBackend(), SdpaBackend())

#: The largest error that a faster backend may make, as a share of the outputs' size.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: The error that rounding alone makes in outputs that nearly cancel out.
_ROUNDING = 1e-5

#: The longest window that the probe looks beyond.
_MAX_PROBED_WINDOW = 512

#: What configurations call the lengths past which attention is another.
_WINDOWS = re.compile(r"window(?!_layers)|chunk|block_size|local_attention")

#: The most that a second copy of the weights may take while padding is tried in float32.
_MAX_FLOAT32_BYTES = 4 << 30

#: What a model raises that cannot be run by some backend.
_REFUSALS = (
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    NotImplementedError,
    IndexError,
    KeyError,
    AssertionError,
)


class Backbone(Protocol):
    """Runs a transformer without its head on batches of single token sequences."""

    @property
    def name(self) -> str:
        """Its attention backend, or how it pads."""

    @property
    def cost(self) -> BatchLayout:
        """What a batch costs."""

    @property
    def max_positions(self) -> int | None:
        """How many tokens the model's tables of positions have room for; None without any."""

    def forward(self, batch: Sequence[ModelInput]) -> ReadStates:
        """Return the hidden states at each sample's reads."""

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""


#: Runs samples in one padded pass and returns each one's outputs, ``[reads, width]``.
RunPadded = Callable[[Sequence[ModelInput]], list[torch.Tensor]]

_logger = logging.getLogger(__name__)


@torch.inference_mode()
def select_backend(
    model: PreTrainedModel, *, has_global: bool = False, prefix_cache_bytes: int = 0
) -> Backbone:
    """Return the fastest backbone for a model that gives what transformers alone gives.

    A model is run on a few samples by each: one that a pruned last layer, shared prefixes, the
    prefix cache, packing or padding does not serve exactly (attention of its own, recurrence) is
    found out here and gets a slower backbone.
    """
    backbone = _select_backbone(model, has_global, prefix_cache_bytes)
    _logger.debug("%s runs on backend %s (%s)", type(model).__name__, backbone.name, backbone.cost)
    return backbone


def _select_backbone(model: PreTrainedModel, has_global: bool, prefix_cache_bytes: int) -> Backbone:
    config: Any = model.config
    config.use_cache = False
    run_padded = PaddedBackbone(model, has_global=has_global).run_padded
    probe = _Probe.of(model)
    reference = _run_reference(model, probe, run_padded)
    packed = None
    if reference.outputs is not None and reference.state is None and not _has_chunks(model):
        packed = _fastest_packed(model, probe, reference, has_global, prefix_cache_bytes)
    if packed is not None:
        return packed
    return PaddedBackbone(
        model,
        has_global=has_global,
        padding=_padding_policy(model, probe, reference, run_padded),
        max_positions=reference.max_positions,
    )


@torch.inference_mode()
def probe_padding(
    model: PreTrainedModel, run_padded: RunPadded
) -> tuple[PaddingPolicy, int | None]:
    """Return which samples a model, head and all, may be given at once, and its `max_positions`."""
    probe = _Probe.of(model)
    reference = _run_reference(model, probe, run_padded)
    return _padding_policy(model, probe, reference, run_padded), reference.max_positions


@dataclass(frozen=True, slots=True)
class _Probe:
    """The samples that a model is tried on, by their ids.

    ``group`` share a prefix on two levels; ``others`` share nothing, and one of them holds the
    special ids that a text may spell out; ``beyond`` are past short windows, chunks and blocks,
    where attention may be another: the longest by two of them, and one between that is padded.
    """

    group: list[tuple[int, ...]]
    others: list[tuple[int, ...]]
    beyond: list[tuple[int, ...]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Probe:
        """Make the samples for a model: within its vocabulary, its limit and past its window."""
        config: Any = model.config.get_text_config()
        window = max(_windows(config), default=0)
        beyond = [max(min(2 * window, _MAX_PROBED_WINDOW), 8) + 40]
        if window:
            beyond.insert(0, window + 30)
        max_tokens = _max_probe_tokens(model, config)
        num_ids = _num_ids(model, config)
        special = [one for one in _special_ids(config) if one < num_ids]
        end = special[:1]  # where there is one, heads of encoder-decoders read it
        choose = torch.Generator().manual_seed(0)
        ids: list[list[int]] = torch.randint(num_ids, (2, 700), generator=choose).tolist()
        # Plain ids: special ones make positions and reads of their own.
        plain = next(one for one in range(len(special) + 1) if one not in special)
        own = [[plain if one in special else one for one in some] for some in ids]

        def sample(*parts: Sequence[int]) -> tuple[int, ...]:
            joined = [one for part in parts for one in part]
            return (*joined[: max(max_tokens - len(end), 1)], *end)

        prompt, turn = own[0][:24], own[0][24:44]
        group = [
            sample(prefix, own[1][8 * n : 8 * n + 6 + n % 2])
            for n, prefix in enumerate((prompt, prompt, prompt + turn, prompt + turn))
        ]
        spelled = sample(own[1][50:56], [*special, *special[:1]], own[1][60:71])
        others = [sample(own[1][100 : 100 + length]) for length in (4, 30)]
        return cls(group, [*others, spelled], [sample(own[1][:length]) for length in beyond])

    @property
    def short(self) -> list[tuple[int, ...]]:
        """All but those that are past a window."""
        return [*self.group, *self.others]

    @property
    def longest(self) -> tuple[int, ...]:
        """The longest of all."""
        return self.beyond[-1]

    @property
    def samples(self) -> list[tuple[int, ...]]:
        """All of them."""
        return [*self.short, *self.beyond]


@dataclass(frozen=True, slots=True)
class _Reference:
    """What transformers alone gave: each sample's outputs at its first and its last token.

    ``outputs`` is None for a model that refuses the probe; ``state`` is given for one that its own
    passes change.
    """

    outputs: list[torch.Tensor] | None
    state: ModuleState | None
    lengths: Lengths
    max_positions: int | None


def _run_reference(model: PreTrainedModel, probe: _Probe, run_padded: RunPadded) -> _Reference:
    lengths, tables, state = lengths_of(model), PositionTables(), ModuleState(model.modules())
    outputs: list[torch.Tensor] = []
    is_changed = is_refused = False
    *_, spelled = probe.others
    try:
        for ids in probe.samples:
            lengths.begin()
            # Special ids take positions of their own.
            with nullcontext() if ids == spelled else tables.watch(len(ids)):
                outputs += run_padded(_ends_read([ids]))
            if state.is_changed:
                is_changed = True
                state.restore()
        again = run_padded(_ends_read([probe.longest]))
        if is_changed:
            state.restore()
    except _REFUSALS:
        is_refused = True
    else:
        found, before = torch.cat(again), torch.cat(outputs[-1:])
        # What is not a number is a failure of each sample, and no other one.
        is_number = bool(torch.isfinite(torch.cat([found, before])).all())
        if is_number and not _is_near(found, before, found.dtype):
            raise CheckpointError(
                f"{type(model).__name__} gives one sample another score each time (attention by "
                "random hashes, or the like): no score of it could be had again"
            )
    return _Reference(
        None if is_refused else outputs,
        state if is_changed else None,
        lengths,
        tables.max_tokens,
    )


def _fastest_packed(
    model: PreTrainedModel,
    probe: _Probe,
    reference: _Reference,
    has_global: bool,
    prefix_cache_bytes: int,
) -> PackedBackbone | None:
    """Return the fastest packed backbone that is exact; leave the model as it was if none is."""
    config: Any = model.config
    own = config._attn_implementation
    backends = [one for one in ATTENTION_BACKENDS if one.supports(model.device, model.dtype)]
    for backend, is_pruned, share in product(backends, (True, False), (True, False)):
        if is_pruned and not prune_last_layer(model):
            continue
        for num_bytes in dict.fromkeys((prefix_cache_bytes, 0) if share else (0,)):
            try:
                packed = PackedBackbone(
                    model,
                    backend,
                    share=share,
                    is_pruned=is_pruned,
                    has_global=has_global,
                    prefix_cache_bytes=num_bytes,
                    lengths=reference.lengths,
                    max_positions=reference.max_positions,
                )
                if not _serves_batch(packed, probe, reference):
                    break
                if not packed.has_prefix_cache or _serves_cached(packed, probe, reference):
                    packed.clear_prefix_cache()
                    return packed
            except _REFUSALS:
                pass  # the model knows no such attention, or keys of its own are not kept
        restore_last_layer(model)
    if not isinstance(model, LongformerModel):
        model.set_attn_implementation(own)
    return None


def _serves_batch(packed: PackedBackbone, probe: _Probe, reference: _Reference) -> bool:
    """Try batches: without what is longer than a window too, which keeps others from sharing.

    A probe in which nothing was shared, or cached below, has shown nothing.
    """
    if not _is_close(packed, _ends_read(probe.samples), probe, reference):
        return False
    if packed.cost is not BatchLayout.PREFIX_SHARED:
        return True
    spared = _num_spared(packed, _ends_read(probe.short), probe, reference)
    return spared is not None and spared > 0


def _serves_cached(packed: PackedBackbone, probe: _Probe, reference: _Reference) -> bool:
    """Try prefixes that earlier batches computed: to the last token, in part, and twice over.

    What is read is computed, so samples are read at their ends here, as scores are.
    """
    packed.clear_prefix_cache()
    for some in (probe.group[::2], probe.short, probe.short):
        spared = _num_spared(packed, _last_read(some), probe, reference)
        if spared is None:
            return False
    # By now all but the last tokens are cached.
    return spared is not None and spared > sum(len(ids) for ids in probe.group) // 2


def _num_spared(
    packed: PackedBackbone, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> int | None:
    """Count the tokens of a batch that are not computed; None where its states are not exact."""
    found = packed.forward(batch)
    if not _is_near_reference(found, batch, probe, reference):
        return None
    return sum(one.num_tokens for one in batch) - sum(found.num_computed)


def _is_close(
    packed: PackedBackbone, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> bool:
    return _is_near_reference(packed.forward(batch), batch, probe, reference)


def _is_near_reference(
    found: ReadStates, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> bool:
    """Compare a packed batch's states with those of its samples alone, read for read."""
    given = dict(zip(probe.samples, reference.outputs or (), strict=True))
    wanted = [given[one.ids][-len(one.read_positions) :] for one in batch]
    return _is_near(found.states, torch.cat(wanted), wanted[0].dtype)


def _is_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (found - wanted).float().norm(dim=-1).max()
    size = wanted.float().norm(dim=-1).max()
    return bool(error <= max(_TOLERANCE[dtype] * float(size), _ROUNDING))


def _padding_policy(
    model: PreTrainedModel, probe: _Probe, reference: _Reference, run_padded: RunPadded
) -> PaddingPolicy:
    """Return which samples may be padded to one length; none where that changes what they give."""
    apart = PaddingPolicy(is_padded=False, lengths=reference.lengths, state=reference.state)
    if reference.outputs is not None and reference.state is None:
        together = PaddingPolicy(lengths=reference.lengths)
        if _is_padding_exact(model, probe, reference.outputs, together, apart, run_padded):
            return together
    _logger.warning(
        "%s is run one sample at a time: no batch is known to give its own scores",
        type(model).__name__,
    )
    return apart


def _is_padding_exact(
    model: PreTrainedModel,
    probe: _Probe,
    outputs: Sequence[torch.Tensor],
    together: PaddingPolicy,
    apart: PaddingPolicy,
    run_padded: RunPadded,
) -> bool:
    """Try it in float32, where rounding does not hide a wrong score, as far as memory allows."""
    num_bytes = 4 * sum(one.numel() for one in model.parameters())
    if model.dtype is not torch.float32 and num_bytes <= _MAX_FLOAT32_BYTES:
        try:
            with _in_float32(model):
                outputs = apart.run(_ends_read(probe.samples), run_padded)
                return _serves_padded(probe, outputs, together, run_padded, torch.float32)
        except torch.OutOfMemoryError:
            pass
    return _serves_padded(probe, outputs, together, run_padded, model.dtype)


def _serves_padded(
    probe: _Probe,
    outputs: Sequence[torch.Tensor],
    together: PaddingPolicy,
    run_padded: RunPadded,
    dtype: torch.dtype,
) -> bool:
    """Try paddings of one token, of some and of nearly all.

    A batch that is refused for what its texts spell out is no wrong score: the server splits it.
    """
    given = dict(zip(probe.samples, outputs, strict=True))
    short, medium, spelled = probe.others
    one, one_more, *_ = probe.group
    usual = [ids for ids in probe.samples if ids != spelled]
    for some in (usual, [short, medium], [one, one_more], [short, spelled, probe.longest]):
        try:
            found = torch.cat(together.run(_ends_read(some), run_padded))
        except _REFUSALS:
            if spelled in some:
                continue
            return False
        if not _is_near(found, torch.cat([given[ids] for ids in some]), dtype):
            return False
    return True


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Run the block in float32; weights are put back as they were, bit for bit."""
    tensors = [one for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


def _ends_read(samples: Sequence[tuple[int, ...]]) -> list[ModelInput]:
    return [
        ModelInput(ids, (Span(0, 1), Span(len(ids) - 1, len(ids))), truncated=False)
        for ids in samples
    ]


def _last_read(samples: Sequence[tuple[int, ...]]) -> list[ModelInput]:
    return [ModelInput(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in samples]


def _max_probe_tokens(model: PreTrainedModel, config: Any) -> int:
    """Return how many tokens the probe's samples may have, before the tables are known."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return _MAX_PROBED_WINDOW + 48
    return max(positions - (first_position(model) or 0) - 8, 2)


def _windows(config: Any) -> Iterator[int]:
    """Yield the lengths, of those that the probe looks beyond, past which attention is another."""
    for name, value in config.to_dict().items():
        if _WINDOWS.search(name):
            sizes = value if isinstance(value, list) else [value]
            yield from (n for n in sizes if type(n) is int and 0 < n <= _MAX_PROBED_WINDOW)


def _num_ids(model: PreTrainedModel, config: Any) -> int:
    """Return how many ids a model knows; CANINE, which hashes characters, says nothing of it."""
    try:
        table: Any = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    known = [getattr(table, "num_embeddings", None), getattr(config, "vocab_size", None)]
    return min((one for one in known if one), default=1 << 10)


def _special_ids(config: Any) -> list[int]:
    """Return the ids that a configuration gives a meaning, the end of a text first."""
    names = ("eos_token_id", "pad_token_id", "bos_token_id", "mask_token_id", "sep_token_id")
    given = [getattr(config, name, None) for name in names]
    # Llama 3.1 has several ends of text, as a list.
    ids = [one for ids in given for one in (ids if isinstance(ids, list) else [ids])]
    return [one for one in dict.fromkeys(ids) if isinstance(one, int) and one >= 0]


def _has_chunks(model: PreTrainedModel) -> bool:
    """Say whether attention is cut into chunks that the probe's samples do not reach (Llama 4)."""
    return bool(getattr(model.config.get_text_config(), "attention_chunk_size", None))
