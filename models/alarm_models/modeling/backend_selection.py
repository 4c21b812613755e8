"""Which way runs a model fastest and gives what the plain way gives: found out by running it.

The plain way is transformers alone: one sample at a time, nothing kept from one to the next. Every
faster way is tried on what it will be given: packed rows, shared beginnings, the prefix cache,
padding. Whatever is not exact is not used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.packed.backbone import PackedBackbone
from alarm_models.modeling.packed.last_layer import prune_last_layer, restore_last_layer
from alarm_models.modeling.packed.positions import (
    Lengths,
    ModuleState,
    PositionTables,
    first_position,
    lengths_of,
)
from alarm_models.modeling.packed.varlen import can_varlen
from alarm_models.modeling.padded import PaddedBackbone, Together
from alarm_models.types import Span

__all__ = ["Backbone", "Forward", "PlainWay", "plain_way", "select_backend"]

#: The largest error that a faster way may make, as a share of the outputs' size.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: The error that rounding alone makes in outputs that nearly cancel out.
_ROUNDING = 1e-5

#: The longest window that the probe looks beyond.
_MAX_PROBED_WINDOW = 512

#: What configurations call the lengths past which attention is another.
_WINDOWS = re.compile(r"window(?!_layers)|chunk|block_size|local_attention")

#: The most that a second copy of the weights may take while padding is tried in float32.
_MAX_FLOAT32_BYTES = 4 << 30

#: What a model raises that cannot be run in some way.
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

Backbone = PaddedBackbone | PackedBackbone

#: Runs padded samples and returns each one's outputs, ``[reads, width]``.
Forward = Callable[[Sequence[ModelInput]], list[torch.Tensor]]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlainWay:
    """What is known of a model from running it plainly.

    ``together`` says which samples it may be given at once, ``max_positions`` how many tokens its
    tables of positions have room for: None without any.
    """

    together: Together
    max_positions: int | None


@torch.inference_mode()
def select_backend(
    model: PreTrainedModel, *, has_global: bool = False, max_remembered_bytes: int = 0
) -> Backbone:
    """Return the fastest way to run a model that gives what the plain way gives.

    A model is run on a few samples each way: one that trimming, sharing, remembering, packing or
    padding does not serve exactly (attention of its own, recurrence) is found out here and takes a
    slower way.
    """
    config: Any = model.config
    config.use_cache = False
    forward = PaddedBackbone(model, has_global=has_global).forward
    probe = _Probe.of(model)
    alone = _run_alone(model, probe, forward)
    packed = None
    if alone.outputs is not None and alone.state is None and not _has_chunks(model):
        packed = _fastest_packed(model, probe, alone, has_global, max_remembered_bytes)
    if packed is not None:
        return packed
    return PaddedBackbone(
        model,
        has_global=has_global,
        together=_together(model, probe, alone, forward),
        max_positions=alone.max_positions,
    )


@torch.inference_mode()
def plain_way(model: PreTrainedModel, forward: Forward) -> PlainWay:
    """Return which samples a model may be given at once, head and all."""
    probe = _Probe.of(model)
    alone = _run_alone(model, probe, forward)
    return PlainWay(_together(model, probe, alone, forward), alone.max_positions)


@dataclass(frozen=True, slots=True)
class _Probe:
    """The samples that a model is tried on, by their ids.

    ``group`` share a beginning on two levels; ``others`` share nothing, and one of them holds the
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
        room = _room(model, config)
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
            return (*joined[: max(room - len(end), 1)], *end)

        prompt, turn = own[0][:24], own[0][24:44]
        group = [
            sample(beginning, own[1][8 * n : 8 * n + 6 + n % 2])
            for n, beginning in enumerate((prompt, prompt, prompt + turn, prompt + turn))
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
class _Alone:
    """What the plain way gave: each sample's outputs at its first and its last token.

    ``outputs`` is None for a model that refuses the probe; ``state`` is given for one that its own
    passes change.
    """

    outputs: list[torch.Tensor] | None
    state: ModuleState | None
    lengths: Lengths
    max_positions: int | None


def _run_alone(model: PreTrainedModel, probe: _Probe, forward: Forward) -> _Alone:
    lengths, tables, state = lengths_of(model), PositionTables(), ModuleState(model.modules())
    outputs: list[torch.Tensor] = []
    is_changed = is_refused = False
    *_, spelled = probe.others
    try:
        for ids in probe.samples:
            lengths.begin()
            # Special ids take positions of their own.
            with nullcontext() if ids == spelled else tables.watch(len(ids)):
                outputs += forward(_ends_read([ids]))
            if state.is_changed:
                is_changed = True
                state.restore()
        again = forward(_ends_read([probe.longest]))
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
    return _Alone(
        None if is_refused else outputs,
        state if is_changed else None,
        lengths,
        tables.max_tokens,
    )


def _fastest_packed(
    model: PreTrainedModel,
    probe: _Probe,
    alone: _Alone,
    has_global: bool,
    max_remembered_bytes: int,
) -> PackedBackbone | None:
    """Return the fastest packed way that is exact; leave the model as it was where none is."""
    config: Any = model.config
    own = config._attn_implementation
    kernels = (True, False) if can_varlen(model.device, model.dtype) else (False,)
    for is_varlen, is_trimmed, share in product(kernels, (True, False), (True, False)):
        if is_trimmed and not prune_last_layer(model):
            continue
        for num_bytes in dict.fromkeys((max_remembered_bytes, 0) if share else (0,)):
            try:
                packed = PackedBackbone(
                    model,
                    share=share,
                    is_trimmed=is_trimmed,
                    has_global=has_global,
                    is_varlen=is_varlen,
                    max_remembered_bytes=num_bytes,
                    lengths=alone.lengths,
                    max_positions=alone.max_positions,
                )
                if not _serves_rows(packed, probe, alone):
                    break
                if not packed.has_prefix_cache or _serves_remembered(packed, probe, alone):
                    packed.forget()
                    return packed
            except _REFUSALS:
                pass  # the model knows no such attention, or keys of its own are not kept
        restore_last_layer(model)
    if not isinstance(model, LongformerModel):
        model.set_attn_implementation(own)
    return None


def _serves_rows(packed: PackedBackbone, probe: _Probe, alone: _Alone) -> bool:
    """Try whole rows: without what is longer than a window too, which keeps others from sharing.

    A probe in which nothing was shared, or recalled below, has shown nothing.
    """
    if not _is_close(packed, _ends_read(probe.samples), probe, alone):
        return False
    if packed.cost is not BatchLayout.PREFIX_SHARED:
        return True
    batch = _ends_read(probe.short)
    return _is_close(packed, batch, probe, alone) and _num_spared(packed, batch) > 0


def _serves_remembered(packed: PackedBackbone, probe: _Probe, alone: _Alone) -> bool:
    """Try beginnings that earlier batches ran: known to the last token, in part, and twice over.

    What is read is run, so samples are read at their ends here, as scores are.
    """
    packed.forget()
    for some in (probe.group[::2], probe.short, probe.short):
        batch = _last_read(some)
        if not _is_close(packed, batch, probe, alone):
            return False
    # By now all but the last tokens is known.
    return _num_spared(packed, batch) > sum(len(ids) for ids in probe.group) // 2


def _num_spared(packed: PackedBackbone, batch: Sequence[ModelInput]) -> int:
    return sum(one.num_tokens for one in batch) - sum(packed.num_computed(batch))


def _is_close(
    packed: PackedBackbone, batch: Sequence[ModelInput], probe: _Probe, alone: _Alone
) -> bool:
    """Compare a packed batch's states with those of its samples alone, read for read."""
    given = dict(zip(probe.samples, alone.outputs or (), strict=True))
    wanted = [given[one.ids][-len(one.read_positions) :] for one in batch]
    return _is_near(packed.rows(batch), torch.cat(wanted), wanted[0].dtype)


def _is_near(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    error = (found - wanted).float().norm(dim=-1).max()
    size = wanted.float().norm(dim=-1).max()
    return bool(error <= max(_TOLERANCE[dtype] * float(size), _ROUNDING))


def _together(model: PreTrainedModel, probe: _Probe, alone: _Alone, forward: Forward) -> Together:
    """Return which samples may be padded to one length; none where that changes what they give."""
    apart = Together(is_padded=False, lengths=alone.lengths, state=alone.state)
    if alone.outputs is not None and alone.state is None:
        together = Together(lengths=alone.lengths)
        if _is_padding_exact(model, probe, alone.outputs, together, apart, forward):
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
    together: Together,
    apart: Together,
    forward: Forward,
) -> bool:
    """Try it in float32, where rounding does not hide a wrong score, as far as there is room."""
    num_bytes = 4 * sum(one.numel() for one in model.parameters())
    if model.dtype is not torch.float32 and num_bytes <= _MAX_FLOAT32_BYTES:
        try:
            with _in_float32(model):
                outputs = apart.run(_ends_read(probe.samples), forward)
                return _serves_padded(probe, outputs, together, forward, torch.float32)
        except torch.OutOfMemoryError:
            pass
    return _serves_padded(probe, outputs, together, forward, model.dtype)


def _serves_padded(
    probe: _Probe,
    outputs: Sequence[torch.Tensor],
    together: Together,
    forward: Forward,
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
            found = torch.cat(together.run(_ends_read(some), forward))
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


def _room(model: PreTrainedModel, config: Any) -> int:
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
    ids = [getattr(config, name, None) for name in names]
    return [one for one in dict.fromkeys(ids) if isinstance(one, int) and one >= 0]


def _has_chunks(model: PreTrainedModel) -> bool:
    """Say whether attention is cut into chunks that the probe's samples do not reach (Llama 4)."""
    return bool(getattr(model.config.get_text_config(), "attention_chunk_size", None))
