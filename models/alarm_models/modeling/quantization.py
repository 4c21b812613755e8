"""Recognizes quantized weights by their tensors' names, without reading them.

Each quantized weight is stored as several tensors: `PackedWeight` says which, by their roles.
`alarm_models.modeling.dequantization` computes the weight from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

__all__ = ["ADVICE", "Layout", "PackedWeight", "Quantization", "TensorInfo", "quantization_of"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor from the file header; None if only an index names it."""

    shape: tuple[int, ...] | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        return "" if self.shape is None else f" {list(self.shape)}"


class Layout(StrEnum):
    """How a weight is stored."""

    GPTQ = "GPTQ"
    AWQ = "AWQ"
    #: compressed-tensors: integers of a few bits in int32.
    PACKED_INTEGERS = "packed integers"
    #: float8 or int8 values beside their scales.
    SCALED = "scaled"
    BITSANDBYTES_4BIT = "bitsandbytes 4-bit"
    BITSANDBYTES_8BIT = "bitsandbytes 8-bit"
    #: The file's own blocks, which the package gguf reads.
    GGUF = "GGUF"


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The stored tensors of one weight by their roles, and how to read them.

    ``bits`` are the possible widths of an integer; ``group_size`` is -1 for one group per row.
    ``zero_offset`` is added to stored zero points; ``block`` are the rows and columns that share
    a scale.
    """

    layout: Layout
    parts: Mapping[str, str]
    bits: tuple[int, ...] = (4,)
    group_size: int = -1
    zero_offset: int = 0
    block: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint is quantized, with the evidence for it in its files.

    ``weights`` are the quantized weights by their names in the model. ``unused`` are stored tensors
    that only quantized arithmetic needs, such as the scales of activations. ``unsupported`` says
    why the weights cannot be read, if they cannot; ``is_unknown``, that their method is the reason,
    which transformers may know.
    """

    method: str
    evidence: str
    weights: Mapping[str, PackedWeight] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unsupported: str | None = None
    is_unknown: bool = False

    def plain(self, stored: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """Return the tensors of the dequantized checkpoint, by the header of the stored one."""
        parts = {name for one in self.weights.values() for name in one.parts.values()}
        rest = {
            name: info
            for name, info in stored.items()
            if name not in parts and name not in self.unused
        }
        return rest | {
            name: TensorInfo(_shape(packed, stored)) for name, packed in self.weights.items()
        }


def _shape(packed: PackedWeight, stored: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    """Return the shape of a weight if the header determines it."""

    def shape_of(role: str) -> tuple[int, ...]:
        name = packed.parts.get(role)
        return () if name is None else stored[name].shape or ()

    if packed.layout in (Layout.SCALED, Layout.BITSANDBYTES_8BIT, Layout.GGUF):
        return shape_of("weight") or None
    scales = shape_of("scales")
    if packed.layout is Layout.AWQ and len(scales) == 2 and shape_of("qweight"):
        return scales[1], shape_of("qweight")[0]
    if packed.layout is Layout.GPTQ and len(scales) == 2 and shape_of("qweight"):
        columns = shape_of("g_idx") or (shape_of("qweight")[0] * 32 // packed.bits[0],)
        return scales[1], columns[0]
    return None


#: Tensors beside weights that tell a quantized checkpoint without a configuration.
_EVIDENCE = {
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_scale_inv": "fp8",
    "weight_scale": "fp8",
    "weight_scale_2": "NVFP4",
    "input_scale": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
}

#: Only quantized arithmetic needs these: scales of activations and of keys and values.
_UNUSED = frozenset(
    {
        "input_scale", "input_zero_point", "input_global_scale", "activation_scale",
        "output_scale", "output_zero_point", "input_scale_ub",
        "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point",
    }
)  # fmt: skip

#: What float8 and int8 are called in a safetensors header, and by torch.
_FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "float8_e4m3fn", "float8_e5m2"})
_INT8 = frozenset({"I8", "int8"})
_UINT8 = frozenset({"U8", "uint8"})

#: Names of methods in configurations, by how they are read.
_GPTQ = frozenset({"gptq", "gptq_v2"})
_AWQ = frozenset({"awq"})
_READ_BY_PARTS = frozenset({"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "bitsandbytes"})

#: Rows and columns that share a scale in DeepSeek's and Qwen's files, unless they say otherwise.
_BLOCK = (128, 128)

_4BIT_STATE = ("bitsandbytes__nf4", "bitsandbytes__fp4")

#: What to do with weights that are not read.
ADVICE = (
    'Use the unquantized original with `dtype = "bfloat16"`, or serve this checkpoint with vLLM or '
    "SGLang and request its scores with kind `remote`"
)


class _Unsupported(Exception):
    """Why a quantized checkpoint cannot be read."""


class _UnknownMethod(_Unsupported):
    """A configuration names a method that is not read here."""


def quantization_of(
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    exported: Mapping[str, Mapping[str, Any]],
) -> Quantization | None:
    """Return how a checkpoint is quantized; None if it is not.

    ``config`` is config.json; ``exported`` are quantizers' own configuration files by name.
    """
    settings, evidence = _settings(config, exported)
    named = settings.get("quant_method") or settings.get("quant_algo")
    found = next(
        (
            (_EVIDENCE[last], f"the tensor {name}")
            for name, last in ((name, name.rpartition(".")[2]) for name in tensors)
            if last in _EVIDENCE
        ),
        None,
    ) or next(
        (
            ("fp8", f"the tensor {name} of type {info.dtype}")
            for name, info in tensors.items()
            if info.dtype is not None and info.dtype.startswith(("F8", "float8"))
        ),
        None,
    )
    if evidence is None and found is None:
        return None
    method = str(named) if named else found[0] if found is not None else "unnamed"
    whole = Quantization(method, evidence or (found[1] if found else ""))
    try:
        weights, unused = _packed_weights(tensors, settings, method)
    except _Unsupported as error:
        return replace(whole, unsupported=str(error), is_unknown=isinstance(error, _UnknownMethod))
    if not weights and found is None:
        # The configuration remained after weights were dequantized.
        return whole
    return replace(whole, weights=weights, unused=unused)


def _settings(
    config: Mapping[str, Any], exported: Mapping[str, Mapping[str, Any]]
) -> tuple[Mapping[str, Any], str | None]:
    """Return the settings of the quantization, and where they are."""
    for key in ("quantization_config", "compression_config"):
        found = config.get(key)
        if isinstance(found, Mapping):
            # compressed-tensors 0.5 and older wrote it without a name.
            default = {"quant_method": "compressed-tensors"} if "config_groups" in found else {}
            return {**default, **found}, f"{key} in config.json"
    for name, defaults in _EXPORTED.items():
        if name in exported:
            found = exported[name]
            nested = found.get("quantization")
            found = nested if isinstance(nested, Mapping) else found
            return {**defaults, **found}, name
    return {}, None


#: Files of quantizers, and the method where they do not name it.
_EXPORTED: dict[str, dict[str, Any]] = {
    "hf_quant_config.json": {"quant_method": "modelopt"},
    "quantize_config.json": {"quant_method": "gptq"},
    "quant_config.json": {"quant_method": "awq"},
}


def _packed_weights(
    tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any], method: str
) -> tuple[dict[str, PackedWeight], tuple[str, ...]]:
    """Return the quantized weights and the unused tensors; raise `_Unsupported`."""
    _require_supported(settings, method)
    by_owner: dict[str, dict[str, str]] = {}
    plain: dict[str, str] = {}
    unused = []
    for name in tensors:
        owner, role = _split(name)
        if role in _UNUSED:
            unused.append(name)
        elif role in _ROLES:
            by_owner.setdefault(owner, {})[role] = name
        elif role == "weight":
            plain[owner] = name
    for owner, parts in by_owner.items():
        if owner in plain:
            parts["weight"] = plain[owner]
    weights = {
        f"{owner}.weight" if owner else "weight": _packed(owner, parts, tensors, settings, method)
        for owner, parts in by_owner.items()
    }
    _require_scales(tensors, {name for parts in by_owner.values() for name in parts.values()})
    return weights, tuple(unused)


def _require_scales(tensors: Mapping[str, TensorInfo], read: set[str]) -> None:
    """Raise `_Unsupported` for quantized values that belong to no weight that is read."""
    for name, info in tensors.items():
        quantized = _FLOAT8 | _INT8 | (_UINT8 if name.endswith(".weight") else frozenset())
        if info.dtype in quantized and name not in read:
            raise _Unsupported(f"{name} is of type {info.dtype}, and no tensor is its scale")


#: The roles of tensors beside, or in place of, a weight.
_ROLES = frozenset(
    {
        "qweight", "qzeros", "scales", "g_idx",
        "weight_packed", "weight_shape", "weight_g_idx", "weight_zero_point",
        "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale",
        "pre_quant_scale",
        "absmax", "quant_map", "nested_absmax", "nested_quant_map", "state",
        "SCB", "weight_format",
    }
)  # fmt: skip


def _split(name: str) -> tuple[str, str]:
    """Split a stored name into its module and its role."""
    owner, _, last = name.rpartition(".")
    if last in _4BIT_STATE and owner.endswith(".weight.quant_state"):
        return owner.removesuffix(".weight.quant_state"), "state"
    if last in ("absmax", "quant_map", "nested_absmax", "nested_quant_map"):
        return owner.removesuffix(".weight"), last
    return owner, last


def _require_supported(settings: Mapping[str, Any], method: str) -> None:
    """Raise `_Unsupported` for settings that the tensors do not show."""
    if not settings:
        return
    name = method.lower()
    if name in _GPTQ:
        form = str(settings.get("checkpoint_format") or "gptq").lower()
        if form not in _GPTQ:
            raise _Unsupported(
                f"its checkpoint_format {form!r} is not read, only gptq and gptq_v2 are"
            )
        _require_bits(settings.get("bits", 4), (4, 8))
    elif name in _AWQ:
        version = str(settings.get("version") or "gemm").lower()
        if version != "gemm":
            raise _Unsupported(f"its version {version!r} is not read, only gemm is")
        _require_bits(settings.get("bits", settings.get("w_bit", 4)), (4,))
    elif name not in _READ_BY_PARTS and settings.get("quant_method") is not None:
        raise _UnknownMethod(f"the method {_shortened(method)} is not read")
    transforms = settings.get("transform_config")
    if isinstance(transforms, Mapping) and transforms.get("config_groups"):
        raise _Unsupported("its transform_config rotates activations, which is not applied")
    if settings.get("sparsity_config") and _is_sparse(settings["sparsity_config"]):
        raise _Unsupported("its sparsity_config compresses zeros, which is not read")


def _shortened(name: str) -> str:
    """Return a name from a file, short enough for a message."""
    return name if len(name) <= 40 else f"{name[:40]}…"


def _is_sparse(settings: object) -> bool:
    form = settings.get("format") if isinstance(settings, Mapping) else None
    return form not in (None, "dense")


def _require_bits(bits: object, known: tuple[int, ...]) -> None:
    if bits not in known:
        expected = " or ".join(map(str, known))
        raise _Unsupported(f"its weights have {bits} bits, and only {expected} are read")


def _packed(
    owner: str,
    parts: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
    settings: Mapping[str, Any],
    method: str,
) -> PackedWeight:
    """Return how the weight of one module is stored; raise `_Unsupported`."""
    roles = frozenset(parts)
    for role in ("weight_scale_2", "weight_global_scale", "pre_quant_scale"):
        if role in roles:
            raise _Unsupported(
                f"{parts[role]} belongs to 4-bit floating point or pre-scaled weights (NVFP4, "
                "MXFP4, W4A8), which are not read"
            )
    if "qweight" in roles:
        return _group_packed(parts, settings)
    if "weight_packed" in roles:
        _require(owner, roles, {"weight_packed", "weight_scale", "weight_shape"})
        bits = _bits(settings)
        return PackedWeight(Layout.PACKED_INTEGERS, parts, bits=bits)
    if "absmax" in roles or "state" in roles:
        _require(owner, roles, {"weight", "absmax", "quant_map", "state"})
        return PackedWeight(Layout.BITSANDBYTES_4BIT, parts)
    if "SCB" in roles:
        _require(owner, roles, {"weight", "SCB"})
        return PackedWeight(Layout.BITSANDBYTES_8BIT, parts)
    scale = "weight_scale_inv" if "weight_scale_inv" in roles else "weight_scale"
    _require(owner, roles, {"weight", scale})
    dtype = tensors[parts["weight"]].dtype
    if dtype is not None and dtype not in _FLOAT8 | _INT8:
        raise _Unsupported(
            f"{parts[scale]} is the scale of {parts['weight']}, which is of type {dtype}, not "
            "float8 or int8"
        )
    if method.lower() == "fp8" and dtype in _INT8:
        raise _Unsupported(f"{parts['weight']} holds 4-bit floating point numbers, in bytes")
    return PackedWeight(Layout.SCALED, parts, block=_block(settings))


def _group_packed(parts: Mapping[str, str], settings: Mapping[str, Any]) -> PackedWeight:
    """Return how GPTQ or AWQ store a weight."""
    _require(parts["qweight"], frozenset(parts), {"qweight", "qzeros", "scales"})
    size = settings.get("group_size", settings.get("q_group_size", -1))
    size = size if isinstance(size, int) and size > 0 else -1
    name = str(settings.get("quant_method", "")).lower()
    if name in _AWQ:
        return PackedWeight(Layout.AWQ, parts, group_size=size)
    if name in _GPTQ:
        is_v2 = "gptq_v2" in (name, str(settings.get("checkpoint_format")).lower())
        bits = int(settings.get("bits", 4))
        return PackedWeight(Layout.GPTQ, parts, (bits,), size, 0 if is_v2 else 1)
    raise _Unsupported(
        f"{parts['qweight']} is GPTQ's or AWQ's, and no file says which: config.json lacks "
        "quantization_config, and neither quantize_config.json nor quant_config.json is there"
    )


def _require(owner: str, roles: Iterable[str], wanted: set[str]) -> None:
    missing = sorted(wanted - set(roles))
    if missing:
        raise _Unsupported(
            f"{owner or 'the model'} has {', '.join(sorted(roles))} without {', '.join(missing)}"
        )


def _weight_schemes(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the weights' settings of each group of a compressed-tensors configuration."""
    groups = settings.get("config_groups")
    schemes = groups.values() if isinstance(groups, Mapping) else ()
    weights = (one.get("weights") for one in schemes if isinstance(one, Mapping))
    return [one for one in weights if isinstance(one, Mapping)]


def _bits(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the widths of packed integers that a configuration names."""
    schemes = _weight_schemes(settings)
    if any(one.get("type", "int") != "int" for one in schemes if one.get("num_bits") == 4):
        raise _Unsupported("its weights are 4-bit floating point numbers, which are not read")
    found = sorted({one["num_bits"] for one in schemes if isinstance(one.get("num_bits"), int)})
    for bits in found:
        _require_bits(bits, (4, 8))
    return tuple(found) or (4, 8)


def _block(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return the rows and columns that share a scale, where scales are by block."""
    found = settings.get("weight_block_size")
    for one in _weight_schemes(settings):
        found = found or one.get("block_structure")
    if (
        isinstance(found, list | tuple)
        and len(found) == 2
        and all(isinstance(one, int) and one > 0 for one in found)
    ):
        return found[0], found[1]
    return _BLOCK
