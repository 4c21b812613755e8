"""Computes weights from their quantized form, in float32.

Integers of 4 or 8 bits are stored in words of 32 bits, the first in the lowest bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from alarm_models.errors import CheckpointError
from alarm_models.modeling.quantization import ADVICE, Layout, PackedWeight

__all__ = ["dequantize", "unpack"]

_WORD_BITS = 32

#: The columns that AutoAWQ's gemm form stores in the nibbles of a word, the lowest first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

#: bitsandbytes' int8 values are multiples of a row's maximum over this.
_INT8_MAX = 127.0

_Parts = Mapping[str, torch.Tensor]


@torch.no_grad()
def dequantize(name: str, packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """Return a weight as float32; ``parts`` are its stored tensors by their roles.

    Raises `CheckpointError` if they do not fit each other; ``name`` says in it which weight it is.
    """
    try:
        return _FORMULAS[packed.layout](packed, parts).contiguous()
    except _Mismatch as error:
        reason = str(error)
    except (RuntimeError, ValueError, IndexError, TypeError, KeyError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    shapes = ", ".join(f"{role} {list(one.shape)}" for role, one in parts.items())
    raise CheckpointError(f"{name} is stored as {packed.layout} in {shapes}: {reason}. {ADVICE}")


class _Mismatch(Exception):
    """How the stored tensors of a weight do not fit each other."""


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the last dimension of int32 ``[..., words]`` to ``[..., words * 32 // bits]``."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    values = (words.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return values.flatten(-2)


def _gptq(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """GPTQ: ``scale * (q - zero)`` by groups of rows; qweight is ``[in * bits / 32, out]``.

    The first form of the files stores zero points less one, modulo the range of an integer.
    """
    scales = parts["scales"].float()  # [groups, out]
    bits = _gptq_bits(packed, parts)
    values = unpack(parts["qweight"].T.contiguous(), bits)  # [out, in]
    zeros = unpack(parts["qzeros"], bits)[:, : scales.shape[1]]  # [groups, out]
    zeros = (zeros + packed.zero_offset) & ((1 << bits) - 1)
    groups = parts.get("g_idx")
    if groups is None:
        groups = _groups_of(values.shape[1], scales.shape[0], packed.group_size)
    return _by_columns(values, scales.T, zeros.T, groups)


def _gptq_bits(packed: PackedWeight, parts: _Parts) -> int:
    """Return the width of the integers, which may differ from the configuration's in a module."""
    (bits,) = packed.bits
    if "g_idx" not in parts:
        return bits
    found, rest = divmod(parts["qweight"].shape[0] * _WORD_BITS, len(parts["g_idx"]))
    if rest or found not in (4, 8):
        raise _Mismatch(f"{found} bits a value, where 4 or 8 are read")
    return found


def _awq(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """AWQ: ``scale * (q - zero)`` by groups of rows; qweight is ``[in, out / 8]``."""
    scales = parts["scales"].float()  # [groups, out]
    values = _in_order(unpack(parts["qweight"], 4))  # [in, out]
    zeros = _in_order(unpack(parts["qzeros"], 4))  # [groups, out]
    groups = _groups_of(values.shape[0], scales.shape[0], packed.group_size)
    return _by_columns(values.T, scales.T, zeros.T, groups)


def _in_order(values: torch.Tensor) -> torch.Tensor:
    """Return AWQ's columns in order, from the order of their nibbles."""
    words = values.reshape(len(values), -1, len(_AWQ_ORDER))
    return words[:, :, torch.tensor(_AWQ_ORDER).argsort()].flatten(1)


def _packed_integers(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """compressed-tensors: signed integers, stored plus half their range, in rows of words."""
    rows, columns = (int(one) for one in parts["weight_shape"])
    words, scales = parts["weight_packed"], parts["weight_scale"].float()
    fitting = [bits for bits in packed.bits if -(-columns * bits // _WORD_BITS) == words.shape[1]]
    if len(fitting) != 1:
        raise _Mismatch(f"the width of the integers is not one of {packed.bits}")
    (bits,) = fitting
    half = 1 << (bits - 1)
    values = unpack(words, bits)[:rows, :columns] - half
    scales = scales.reshape(1, 1) if scales.numel() == 1 else scales.reshape(rows, -1)
    zeros = parts.get("weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:  # packed by columns
        zeros = unpack(zeros.T.contiguous(), bits).T[:rows] - half
    groups = parts.get("weight_g_idx")
    if groups is None or bool((groups < 0).all()):
        groups = _groups_of(columns, scales.shape[1], -1)
    return _by_columns(values, scales, zeros, groups)


def _scaled(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """float8 and int8: ``scale * (q - zero)``, where a scale is of a block, row, group or all."""
    values = parts["weight"].float()
    scales = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scales is None:
        raise _Mismatch("no scale")
    if scales.dtype == torch.uint8:  # a power of two each, in bytes of no type
        scales = scales.view(torch.float8_e8m0fnu)
    scales = _spread(scales.float(), values, packed.block)
    zeros = parts.get("weight_zero_point")
    if zeros is not None:
        values = values - _spread(zeros.float(), values, packed.block)
    return values * scales


def _spread(
    scales: torch.Tensor, values: torch.Tensor, block: tuple[int, int] | None
) -> torch.Tensor:
    """Return scales in a form that broadcasts to ``[out, in]``."""
    if scales.numel() == 1:
        return scales.reshape(())
    rows, columns = values.shape
    if scales.ndim == 4:  # ModelOpt's blocks are [rows, 1, columns, 1]
        scales = scales[:, 0, :, 0]
    if block is not None and scales.shape == (-(-rows // block[0]), -(-columns // block[1])):
        by_rows = scales.repeat_interleave(block[0], 0)[:rows]
        return by_rows.repeat_interleave(block[1], 1)[:, :columns]
    if scales.shape == (rows,):
        return scales.unsqueeze(1)
    if scales.ndim == 2 and scales.shape[0] == rows and columns % scales.shape[1] == 0:
        return scales.repeat_interleave(columns // scales.shape[1], 1)
    raise _Mismatch(
        f"scales {list(scales.shape)} are of no block, row or group of {[rows, columns]}"
    )


def _bitsandbytes_4bit(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """bitsandbytes nf4 and fp4: ``map[q] * absmax`` by blocks of the flattened weight."""
    state: dict[str, Any] = json.loads(bytes(parts["state"].to(torch.uint8).tolist()))
    absmax = parts["absmax"]
    if "nested_absmax" in parts:
        nested = parts["nested_quant_map"].float()[absmax.long()]
        absmax = _by_blocks(nested, parts["nested_absmax"].float(), int(state["nested_blocksize"]))
        absmax = absmax + float(state["nested_offset"])
    pairs = parts["weight"].flatten().view(torch.uint8)
    # The first of two values is in the higher bits.
    indices = torch.stack((pairs >> 4, pairs & 0xF), -1).flatten()
    shape = tuple(int(one) for one in state["shape"])
    values = parts["quant_map"].float()[indices.int()][: torch.Size(shape).numel()]
    return _by_blocks(values, absmax.float(), int(state["blocksize"])).reshape(shape)


def _by_blocks(values: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    return values * scales.repeat_interleave(size)[: values.numel()]


def _bitsandbytes_8bit(packed: PackedWeight, parts: _Parts) -> torch.Tensor:
    """bitsandbytes LLM.int8(): ``q * absmax / 127`` by rows."""
    form = parts.get("weight_format")
    if form is not None and form.numel() == 1 and int(form) != 0:
        raise _Mismatch("its rows are in the order of a GPU's kernels; save it again by rows")
    rows = parts["weight"].shape[0]
    return parts["weight"].float() * (parts["SCB"].float().reshape(rows, 1) / _INT8_MAX)


def _groups_of(columns: int, num_groups: int, size: int) -> torch.Tensor:
    """Return the group of each column, where groups are in order."""
    size = size if size > 0 else -(-columns // num_groups)
    if -(-columns // size) != num_groups:
        raise _Mismatch(f"{columns} columns in groups of {size} are not {num_groups} groups")
    return torch.arange(columns) // size


def _by_columns(
    values: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, groups: torch.Tensor
) -> torch.Tensor:
    """Scale integers ``[out, in]`` by the groups of columns ``[out, groups]``."""
    groups = groups.long()
    if len(groups) != values.shape[1] or int(groups.min()) < 0:
        raise _Mismatch(f"{len(groups)} groups of columns for {values.shape[1]} columns")
    floats = values.float()
    if zeros is not None:
        floats -= zeros.float()[:, groups]
    return floats * scales[:, groups]


_FORMULAS: dict[Layout, Callable[[PackedWeight, _Parts], torch.Tensor]] = {
    Layout.GPTQ: _gptq,
    Layout.AWQ: _awq,
    Layout.PACKED_INTEGERS: _packed_integers,
    Layout.SCALED: _scaled,
    Layout.BITSANDBYTES_4BIT: _bitsandbytes_4bit,
    Layout.BITSANDBYTES_8BIT: _bitsandbytes_8bit,
}
