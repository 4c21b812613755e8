"""Backend selection: probes for the fastest backbone and attention backend that are exact.

The reference is plain transformers, one sample at a time and without a cache. Each faster
candidate runs packed batches, shared prefixes, the prefix cache and padding; candidates that do
not match the reference are not used. Models of 16 bits are also probed in float32, whose rounding
hides no error, if memory allows.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple, Protocol

import torch
from transformers import LongformerModel, PreTrainedModel

from alarm_models.errors import CheckpointError
from alarm_models.modeling.attention_kernels import FUSED, fastest_attention
from alarm_models.modeling.inputs import BatchLayout, ModelInput, ReadStates
from alarm_models.modeling.kernels.library import NO_KERNELS, compiled_kernels
from alarm_models.modeling.kernels.modules import count_fused, fuse_modules, unfuse_modules
from alarm_models.modeling.linear_kernels import (
    PACKED,
    PLAIN,
    count_packed,
    fastest_linear,
    pack_linears,
    unpack_linears,
)
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
from alarm_models.modeling.packed.varlen import VarlenBackend
from alarm_models.modeling.padded import PaddedBackbone, PaddingPolicy
from alarm_models.types import Span

__all__ = [
    "ATTENTION_BACKENDS",
    "Backbone",
    "RunPadded",
    "execution",
    "is_near",
    "probe_padding",
    "select_backend",
    "select_kernels",
]

#: The attention backends: on a GPU, fastest first; on a CPU the fastest is measured.
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = (VarlenBackend(), FUSED)

#: Maximum error of a faster backend, relative to the size of the outputs.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: Rounding error of outputs that nearly cancel out.
_ROUNDING = 1e-5

#: Maximum window for which the probe has longer samples.
_MAX_PROBED_WINDOW = 512

#: A window for short samples, by which it shows whether the mask applies the configured one.
_SHORT_WINDOW = 8

#: Configuration keys with lengths beyond which attention changes.
_WINDOWS = re.compile(r"window(?!_layers)|chunk|block_size|local_attention")

#: Maximum size of a float32 copy of a model's weights during the probes on a CPU.
_MAX_FLOAT32_BYTES = 4 << 30

#: Exceptions raised by models that a backend cannot run.
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
        """The name of its attention backend, or its padding policy."""

    @property
    def cost(self) -> BatchLayout:
        """How a batch is laid out."""

    #: The kernels that its layers call.
    kernels: str
    #: The model if passes change it, None otherwise.
    stateful: PreTrainedModel | None

    @property
    def max_positions(self) -> int | None:
        """Number of positions in the model's position tables; None if it has none."""

    def forward(self, batch: Sequence[ModelInput]) -> ReadStates:
        """Return the hidden states at each sample's read positions."""

    def clear_prefix_cache(self) -> None:
        """Free the keys and values of earlier batches."""


#: Runs samples in one padded pass and returns each one's outputs, ``[reads, width]``.
RunPadded = Callable[[Sequence[ModelInput]], list[torch.Tensor]]

_logger = logging.getLogger(__name__)


@torch.inference_mode()
def select_backend(
    model: PreTrainedModel, *, has_global: bool = False, prefix_cache_bytes: int = 0
) -> Backbone:
    """Return the fastest backbone whose outputs match those of plain transformers.

    Each candidate runs the model on a few samples. If a pruned last layer, shared prefixes, the
    prefix cache, packing or padding changes a model's outputs (custom attention, recurrence), this
    shows here, and the model gets a slower backbone. Linear layers on a CPU get the fastest kernel.
    """
    backbone = _select_backbone(model, has_global, prefix_cache_bytes)

    def run(batch: Sequence[ModelInput]) -> torch.Tensor:
        states = backbone.forward(batch).states
        backbone.clear_prefix_cache()
        return states

    backbone.kernels = select_kernels(model, run)
    _logger.debug("%s runs on %s", type(model).__name__, execution(backbone))
    return backbone


def execution(backbone: Backbone) -> str:
    """Return how a backbone runs its batches, for `/models` and the log."""
    return f"layout={backbone.cost.value} attention={backbone.name} {backbone.kernels}"


@torch.inference_mode()
def select_kernels(
    model: PreTrainedModel, run: Callable[[Sequence[ModelInput]], torch.Tensor]
) -> str:
    """Give a model on a CPU the fastest linear layers, and compiled kernels; return their names.

    ``run`` returns the outputs of a batch. If they change, or if the model cannot run on one of
    these, it is left as it was.
    """
    linear, fused = PLAIN, NO_KERNELS
    kernels = compiled_kernels(model.dtype) if model.device.type == "cpu" else None
    is_packed = (
        model.device.type == "cpu"
        and fastest_linear(model.dtype, torch.get_num_threads()) == PACKED
    )
    try:
        expected = _probe_outputs(model, run) if is_packed or kernels is not None else None
    except _REFUSALS:
        expected = None
    if expected is None:
        return f"linear={linear} fused={fused}"
    if is_packed and _runs_alike(model, run, expected, pack_linears, unpack_linears, count_packed):
        linear = PACKED
    if kernels is not None and _runs_alike(
        model, run, expected, fuse_modules, unfuse_modules, count_fused
    ):
        fused = kernels.name
    return f"linear={linear} fused={fused}"


def _runs_alike(
    model: PreTrainedModel,
    run: Callable[[Sequence[ModelInput]], torch.Tensor],
    expected: torch.Tensor,
    change: Callable[[PreTrainedModel], object],
    undo: Callable[[PreTrainedModel], object],
    count: Callable[[PreTrainedModel], int],
) -> bool:
    """Change parts of a model; undo that if its outputs change. Return whether parts are changed.

    Passes of a model whose state is restored before each undo the change themselves.
    """
    try:
        change(model)
        if count(model) and is_near(_probe_outputs(model, run), expected, model.dtype):
            return count(model) > 0
    except _REFUSALS:
        pass
    undo(model)
    return False


def _probe_outputs(
    model: PreTrainedModel, run: Callable[[Sequence[ModelInput]], torch.Tensor]
) -> torch.Tensor:
    """Return the outputs of single samples, one of them with special ids, and of a batch."""
    probe = _Probe.of(model)
    *others, spelled = probe.others
    batches = ([probe.group[0]], [spelled], [*probe.group, *others])
    return torch.cat([run(_ends_read(batch)) for batch in batches])


def _select_backbone(model: PreTrainedModel, has_global: bool, prefix_cache_bytes: int) -> Backbone:
    config: Any = model.config
    config.use_cache = False
    run_padded = PaddedBackbone(model, has_global=has_global).run_padded
    probe, before = _Probe.of(model), ModuleState(model.modules())
    reference = _run_reference(model, probe, run_padded)
    if _may_be_packed(model, reference):
        layouts = [
            _Layout(is_pruned, share, num_bytes)
            for is_pruned, share in product((True, False), (True, False))
            for num_bytes in dict.fromkeys((prefix_cache_bytes if share else 0, 0))
        ]
        exact = _exact_layouts(model, before, probe, layouts, has_global, run_padded)
        backends = _supported_backends(model)
        found = _fastest_packed(model, probe, reference, has_global, backends, exact)
        if found is not None:
            return found[0]
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
    """Return how samples of a model that includes its head may be batched, and `max_positions`."""
    probe = _Probe.of(model)
    reference = _run_reference(model, probe, run_padded)
    return _padding_policy(model, probe, reference, run_padded), reference.max_positions


@dataclass(frozen=True, slots=True)
class _Probe:
    """The probe samples, as token ids.

    Samples in ``group`` share prefixes on two levels. Those in ``others`` share nothing, and one of
    them contains the special ids that a text may spell out. Those in ``beyond`` are longer than
    short windows, chunks and blocks, where attention may differ: the longest by two of these, and a
    shorter one that is padded.
    """

    group: list[tuple[int, ...]]
    others: list[tuple[int, ...]]
    beyond: list[tuple[int, ...]]

    @classmethod
    def of(cls, model: PreTrainedModel) -> _Probe:
        """Build samples within the model's vocabulary and token limit, some beyond its window."""
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
        # Only plain ids: special ids would change positions and read positions.
        plain = next(one for one in range(len(special) + 1) if one not in special)
        plain_ids = [[plain if one in special else one for one in some] for some in ids]

        def sample(*parts: Sequence[int]) -> tuple[int, ...]:
            joined = [one for part in parts for one in part]
            return (*joined[: max(max_tokens - len(end), 1)], *end)

        prompt, turn = plain_ids[0][:24], plain_ids[0][24:44]
        group = [
            sample(prefix, plain_ids[1][8 * n : 8 * n + 6 + n % 2])
            for n, prefix in enumerate((prompt, prompt, prompt + turn, prompt + turn))
        ]
        spelled = sample(plain_ids[1][50:56], [*special, *special[:1]], plain_ids[1][60:71])
        others = [sample(plain_ids[1][100 : 100 + length]) for length in (4, 30)]
        return cls(group, [*others, spelled], [sample(plain_ids[1][:length]) for length in beyond])

    @property
    def short(self) -> list[tuple[int, ...]]:
        """All samples except those longer than a window."""
        return [*self.group, *self.others]

    @property
    def longest(self) -> tuple[int, ...]:
        """The longest sample."""
        return self.beyond[-1]

    @property
    def samples(self) -> list[tuple[int, ...]]:
        """All samples."""
        return [*self.short, *self.beyond]


@dataclass(frozen=True, slots=True)
class _Reference:
    """Outputs of plain transformers, at the first and the last token of each sample.

    ``outputs`` is None if the model refuses the probe. ``state`` is set if forward passes change
    the model. ``is_windowed`` says whether the attention mask applies a sliding window that no
    sample of the probe is longer than.
    """

    outputs: list[torch.Tensor] | None
    state: ModuleState | None
    lengths: Lengths
    max_positions: int | None
    is_windowed: bool


def _run_reference(model: PreTrainedModel, probe: _Probe, run_padded: RunPadded) -> _Reference:
    lengths, tables, state = lengths_of(model), PositionTables(), ModuleState(model.modules())
    outputs: list[torch.Tensor] = []
    is_changed = is_refused = False
    *_, spelled = probe.others
    try:
        for ids in probe.samples:
            lengths.begin()
            # Special ids may have special positions.
            with nullcontext() if ids == spelled else tables.watch(len(ids)):
                outputs += run_padded(_ends_read([ids]))
            if state.is_changed:
                is_changed = True
                state.restore()
        repeated_outputs = run_padded(_ends_read([probe.longest]))
        if is_changed:
            state.restore()
    except _REFUSALS:
        is_refused = True
    else:
        repeated, first = torch.cat(repeated_outputs), torch.cat(outputs[-1:])
        # NaN and infinity fail each sample later; they are not nondeterminism.
        is_number = bool(torch.isfinite(torch.cat([repeated, first])).all())
        if is_number and not is_near(repeated, first, repeated.dtype):
            raise CheckpointError(
                f"{type(model).__name__} is nondeterministic: the same sample gets different "
                "scores (random hashing in attention, for example), so its scores are not "
                "reproducible"
            )
    return _Reference(
        None if is_refused else outputs,
        state if is_changed else None,
        lengths,
        tables.max_tokens,
        not is_refused and _masks_long_window(model, probe, outputs, run_padded),
    )


def _masks_long_window(
    model: PreTrainedModel,
    probe: _Probe,
    outputs: Sequence[torch.Tensor],
    run_padded: RunPadded,
) -> bool:
    """Whether outputs change with the configured window, which no sample of the probe exceeds.

    Packed batches have no mask: their attention layers must be called with the window.
    """
    config: Any = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or not _MAX_PROBED_WINDOW < window < _max_positions(config):
        return False
    ids = probe.group[-1]
    try:
        config.sliding_window = _SHORT_WINDOW
        changed = torch.cat(run_padded(_ends_read([ids])))
    except _REFUSALS:
        return True
    finally:
        config.sliding_window = window
    return not torch.equal(changed, outputs[probe.samples.index(ids)])


def _max_positions(config: Any) -> float:
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) else math.inf


class _Layout(NamedTuple):
    """How a packed backbone runs batches: see `PackedBackbone`."""

    is_pruned: bool
    share: bool
    prefix_cache_bytes: int


def _may_be_packed(model: PreTrainedModel, reference: _Reference) -> bool:
    return reference.outputs is not None and reference.state is None and not _has_chunks(model)


def _exact_layouts(
    model: PreTrainedModel,
    before: ModuleState,
    probe: _Probe,
    layouts: Sequence[_Layout],
    has_global: bool,
    run_padded: RunPadded,
) -> Sequence[_Layout]:
    """Return the layouts that are exact in float32.

    If a 16-bit model cannot run in float32, return all layouts, or none if it has convolutions.
    With small weights, the tolerance of 16 bits would hide what a layout leaves out, such as
    relative positions, or adds, such as a convolution across two samples. The model's state is
    reset to ``before``, the state before its first pass.
    """
    if _is_float32(model):
        return layouts
    unproven = () if _has_convolution(model) else layouts
    if not _fits_in_float32(model):
        return unproven
    config: Any = model.config
    original_attention = config._attn_implementation
    before.restore()
    try:
        with _in_float32(model):
            reference = _run_reference(model, probe, run_padded)
            if not _may_be_packed(model, reference):
                return unproven
            found = _fastest_packed(
                model, probe, reference, has_global, (FUSED,), layouts, is_trial=True
            )
    except Exception as error:  # kernels and custom code may raise anything
        _logger.info("%s is not probed in float32: %s", type(model).__name__, repr(error)[:300])
        return unproven
    finally:
        _restore(model, original_attention)
    if found is None:
        return ()
    _, exact = found
    return [
        one
        for one in layouts
        if one.is_pruned <= exact.is_pruned
        and one.share <= exact.share
        and one.prefix_cache_bytes <= exact.prefix_cache_bytes
    ]


def _fastest_packed(
    model: PreTrainedModel,
    probe: _Probe,
    reference: _Reference,
    has_global: bool,
    backends: Sequence[AttentionBackend],
    layouts: Sequence[_Layout],
    *,
    is_trial: bool = False,
) -> tuple[PackedBackbone, _Layout] | None:
    """Return the fastest packed backbone that is exact, and its layout.

    If there is none, the model is as before. A trial that runs out of memory raises
    `torch.OutOfMemoryError`, since that says nothing of the layouts.
    """
    config: Any = model.config
    original_attention = config._attn_implementation
    for backend, layout in product(backends, layouts):
        if layout.is_pruned and not prune_last_layer(model):
            continue
        try:
            packed = PackedBackbone(
                model,
                backend,
                share=layout.share,
                is_pruned=layout.is_pruned,
                has_global=has_global,
                prefix_cache_bytes=layout.prefix_cache_bytes,
                lengths=reference.lengths,
                max_positions=reference.max_positions,
            )
            if (
                _serves_batch(packed, probe, reference)
                and (not packed.has_prefix_cache or _serves_cached(packed, probe, reference))
                and (packed.windows or not reference.is_windowed)
            ):
                packed.clear_prefix_cache()
                return packed, layout
        except _REFUSALS as error:
            if isinstance(error, torch.OutOfMemoryError) and is_trial:
                raise
            # The model does not support the backend or shared prefixes, or its keys are not cached.
            _logger.info(
                "%s does not run on %s: %s",
                type(model).__name__,
                backend.name,
                repr(error)[:300],
            )
        restore_last_layer(model)
    _restore(model, original_attention)
    return None


def _restore(model: PreTrainedModel, attention: str) -> None:
    """Restore a model's last layer and its attention."""
    restore_last_layer(model)
    if not isinstance(model, LongformerModel):
        model.set_attn_implementation(attention)


def _supported_backends(model: PreTrainedModel) -> list[AttentionBackend]:
    """Return the attention backends for a model's device and dtype, fastest first."""
    backends = [one for one in ATTENTION_BACKENDS if one.supports(model.device, model.dtype)]
    if model.device.type == "cpu":
        backends.insert(0, fastest_attention(model.dtype, torch.get_num_threads()))
    return list(dict.fromkeys(backends))


def _serves_batch(packed: PackedBackbone, probe: _Probe, reference: _Reference) -> bool:
    """Probe batches with and without samples beyond a window, which prevent prefix sharing.

    The probe fails if no prefix was shared, since sharing was then not tested.
    """
    if not _is_close(packed, _ends_read(probe.samples), probe, reference):
        return False
    if packed.cost is not BatchLayout.PREFIX_SHARED:
        return True
    spared = _num_spared(packed, _ends_read(probe.short), probe, reference)
    return spared is not None and spared > 0


def _serves_cached(packed: PackedBackbone, probe: _Probe, reference: _Reference) -> bool:
    """Probe cached prefixes: full, partial and repeated hits.

    Tokens at read positions are always computed, so only the last token is read here.
    """
    packed.clear_prefix_cache()
    for some in (probe.group[::2], probe.short, probe.short):
        spared = _num_spared(packed, _last_read(some), probe, reference)
        if spared is None:
            return False
    # Now all tokens except the last ones are cached.
    return spared is not None and spared > sum(len(ids) for ids in probe.group) // 2


def _num_spared(
    packed: PackedBackbone, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> int | None:
    """Count the tokens of a batch that are not computed; None if its states are not exact."""
    read_states = packed.forward(batch)
    if not _is_near_reference(read_states, batch, probe, reference):
        return None
    return sum(one.num_tokens for one in batch) - sum(read_states.num_computed)


def _is_close(
    packed: PackedBackbone, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> bool:
    return _is_near_reference(packed.forward(batch), batch, probe, reference)


def _is_near_reference(
    read_states: ReadStates, batch: Sequence[ModelInput], probe: _Probe, reference: _Reference
) -> bool:
    """Compare the states of a packed batch with the reference at each read position."""
    reference_outputs = dict(zip(probe.samples, reference.outputs or (), strict=True))
    expected = [reference_outputs[one.ids][-len(one.read_positions) :] for one in batch]
    return is_near(read_states.states, torch.cat(expected), expected[0].dtype)


def is_near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Say whether two sets of outputs, a row each, are equal but for rounding in that dtype."""
    error = (actual - expected).float().norm(dim=-1).max()
    size = expected.float().norm(dim=-1).max()
    return bool(error <= max(_TOLERANCE[dtype] * float(size), _ROUNDING))


def _padding_policy(
    model: PreTrainedModel, probe: _Probe, reference: _Reference, run_padded: RunPadded
) -> PaddingPolicy:
    """Return the padding policy: no padding unless it leaves the outputs unchanged."""
    apart = PaddingPolicy(is_padded=False, lengths=reference.lengths, state=reference.state)
    if reference.outputs is not None and reference.state is None:
        together = PaddingPolicy(lengths=reference.lengths)
        if _is_padding_exact(model, probe, reference.outputs, together, apart, run_padded):
            return together
    _logger.warning(
        "%s runs one sample at a time: no batched execution matched its reference scores",
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
    """Probe in float32 if memory allows, since rounding could hide a wrong score."""
    if not _is_float32(model) and _fits_in_float32(model):
        try:
            with _in_float32(model):
                outputs = apart.run(_ends_read(probe.samples), run_padded)
                return _serves_padded(probe, outputs, together, run_padded, torch.float32)
        except Exception as error:  # kernels and custom code may raise anything
            _logger.info("%s is not probed in float32: %s", type(model).__name__, repr(error)[:300])
    return _serves_padded(probe, outputs, together, run_padded, model.dtype)


def _serves_padded(
    probe: _Probe,
    outputs: Sequence[torch.Tensor],
    together: PaddingPolicy,
    run_padded: RunPadded,
    dtype: torch.dtype,
) -> bool:
    """Probe padding of one token, of a few and of nearly the whole sample.

    A batch refused because of special tokens in a text does not fail the probe: the server splits
    such batches.
    """
    reference_outputs = dict(zip(probe.samples, outputs, strict=True))
    short, medium, spelled = probe.others
    one, one_more, *_ = probe.group
    usual = [ids for ids in probe.samples if ids != spelled]
    for some in (usual, [short, medium], [one, one_more], [short, spelled, probe.longest]):
        try:
            actual = torch.cat(together.run(_ends_read(some), run_padded))
        except _REFUSALS:
            if spelled in some:
                continue
            return False
        if not is_near(actual, torch.cat([reference_outputs[ids] for ids in some]), dtype):
            return False
    return True


def _is_float32(model: PreTrainedModel) -> bool:
    return all(one.dtype is torch.float32 for one in model.parameters() if one.is_floating_point())


def _fits_in_float32(model: PreTrainedModel) -> bool:
    """Whether there is memory for a float32 copy, and time to run it on a CPU."""
    num_bytes = 4 * sum(one.numel() for one in model.parameters())
    if model.device.type != "cuda":
        return num_bytes <= _MAX_FLOAT32_BYTES
    num_free, _ = torch.cuda.mem_get_info(model.device)
    return num_bytes <= num_free // 2


@contextmanager
def _in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Run the block in float32, then restore weights, bit for bit, and the state of modules."""
    state = ModuleState(model.modules())
    tensors = [one for one in (*model.parameters(), *model.buffers()) if one.is_floating_point()]
    originals = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, originals, strict=True):
            tensor.data = data
        state.restore()
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # models that are loaded later measure the free memory


def _ends_read(samples: Sequence[tuple[int, ...]]) -> list[ModelInput]:
    return [
        ModelInput(ids, (Span(0, 1), Span(len(ids) - 1, len(ids))), truncated=False)
        for ids in samples
    ]


def _last_read(samples: Sequence[tuple[int, ...]]) -> list[ModelInput]:
    return [ModelInput(ids, (Span(len(ids) - 1, len(ids)),), truncated=False) for ids in samples]


def _max_probe_tokens(model: PreTrainedModel, config: Any) -> int:
    """Return the token limit of probe samples, before the position tables are known."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return _MAX_PROBED_WINDOW + 48
    return max(positions - (first_position(model) or 0) - 8, 2)


def _windows(config: Any) -> Iterator[int]:
    """Yield the configured window and chunk sizes that the probe can exceed."""
    for name, value in config.to_dict().items():
        if _WINDOWS.search(name):
            sizes = value if isinstance(value, list) else [value]
            yield from (n for n in sizes if type(n) is int and 0 < n <= _MAX_PROBED_WINDOW)


def _num_ids(model: PreTrainedModel, config: Any) -> int:
    """Return the vocabulary size, with a default for models without one (CANINE)."""
    try:
        table: Any = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        table = None
    known = [getattr(table, "num_embeddings", None), getattr(config, "vocab_size", None)]
    return min((one for one in known if one), default=1 << 10)


def _special_ids(config: Any) -> list[int]:
    """Return the special token ids of a configuration, end-of-text first."""
    names = ("eos_token_id", "pad_token_id", "bos_token_id", "mask_token_id", "sep_token_id")
    configured = [getattr(config, name, None) for name in names]
    # Llama 3.1 has a list of several end-of-text tokens.
    ids = [one for ids in configured for one in (ids if isinstance(ids, list) else [ids])]
    return [one for one in dict.fromkeys(ids) if isinstance(one, int) and one >= 0]


def _has_convolution(model: PreTrainedModel) -> bool:
    """Whether layers mix neighboring tokens beside attention, as those of hybrid models do."""
    return any(isinstance(one, torch.nn.Conv1d) for one in model.modules())


def _has_chunks(model: PreTrainedModel) -> bool:
    """Whether attention is chunked, with chunks longer than the probe's samples (Llama 4)."""
    return bool(getattr(model.config.get_text_config(), "attention_chunk_size", None))
