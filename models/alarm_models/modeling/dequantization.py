"""Computes weights from their quantized form: ``scale * (q - zero)``, in float32.

Integers of 4 or 8 bits are stored in words of 32 bits, the first in the lowest bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alarm_models.errors import CheckpointError
from alarm_models.modeling.quantization import ADVICE, Layout, PackedWeight

__all__ = ["dequantize"]

_WORD_BITS = 32

#: The columns that AutoAWQ's gemm form stores in the nibbles of a word, the lowest first.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

#: bitsandbytes' int8 values are multiples of a row's maximum over this.
_INT8_MAX = 127.0

#: More values than bitsandbytes scales together.
_MAX_BLOCK_SIZE = 1 << 16

#: How many values of a weight are computed at a time, which bounds the memory beside it.
_CHUNK = 1 << 22

_Parts = Mapping[str, torch.Tensor]


@torch.no_grad()
def dequantize(
    name: str, packed: PackedWeight, parts: _Parts, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a weight, rounded once to ``dtype``; ``parts`` are its stored tensors by their roles.

    Raises `CheckpointError` if they do not fit each other; ``name`` says in it which weight it is.
    """
    try:
        return _FORMULAS[packed.layout](packed, parts).compute(dtype)
    except _Mismatch as error:
        reason = str(error)
    except (
        RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
        MemoryError,
    ) as error:  # fmt: skip
        reason = f"{type(error).__name__}: {str(error)[:200]}"
    shapes = ", ".join(f"{role} {list(one.shape)}" for role, one in parts.items())
    raise CheckpointError(f"{name} is stored as {packed.layout} in {shapes}: {reason}. {ADVICE}")


class _Mismatch(Exception):
    """How the stored tensors of a weight do not fit each other."""


@dataclass(frozen=True, slots=True)
class _Quantized:
    """A quantized matrix.

    ``values`` returns a range of its rows. ``rows`` and ``columns`` are the row and the column of
    ``scales`` and ``zeros`` that apply to each row and column of the matrix. ``shape`` is that of
    the weight, if it is not the matrix's.
    """

    values: Callable[[slice], torch.Tensor]
    scales: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    zeros: torch.Tensor | None = None
    shape: tuple[int, ...] | None = None

    def compute(self, dtype: torch.dtype) -> torch.Tensor:
        """Compute the weight, a range of rows at a time."""
        num_rows, num_columns = len(self.rows), len(self.columns)
        weight = torch.empty(num_rows, num_columns, dtype=dtype)
        step = max(8, _CHUNK // num_columns // 8 * 8)  # AWQ's words hold 8 rows
        for start in range(0, num_rows, step):
            chunk = slice(start, min(start + step, num_rows))
            values = self.values(chunk).float()
            if self.zeros is not None:
                values -= self._spread(self.zeros, chunk)
            weight[chunk] = values.mul_(self._spread(self.scales, chunk))
        return weight if self.shape is None else _reshaped(weight, self.shape)

    def _spread(self, factors: torch.Tensor, chunk: slice) -> torch.Tensor:
        return factors[self.rows[chunk]][:, self.columns].float()


def _reshaped(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return values.flatten()[: torch.Size(shape).numel()].reshape(shape)


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack the last dimension of int32 ``[..., words]`` to ``[..., words * 32 // bits]``."""
    shifts = torch.arange(0, _WORD_BITS, bits, dtype=torch.int32)
    values = words.to(torch.int32).unsqueeze(-1) >> shifts
    values &= (1 << bits) - 1
    return values.flatten(-2)


def _gptq(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """GPTQ: groups of columns; qweight is ``[in * bits / 32, out]``, scales ``[groups, out]``.

    The first form of the files stores zero points less one, modulo the range of an integer.
    """
    words, scales = parts["qweight"].T, parts["scales"].T
    bits = _gptq_bits(packed, parts)
    zeros = _unpack(parts["qzeros"], bits)[:, : scales.shape[0]]
    zeros = (zeros + packed.zero_offset) & ((1 << bits) - 1)
    num_columns = words.shape[1] * _WORD_BITS // bits
    groups = parts.get("g_idx")
    columns = _columns(groups, num_columns, scales.shape[1], packed.group_size)
    return _Quantized(
        lambda chunk: _unpack(words[chunk], bits), scales, _each(words), columns, zeros.T
    )


def _gptq_bits(packed: PackedWeight, parts: _Parts) -> int:
    """Return the width of the integers, which may differ from the configuration's in a module."""
    (bits,) = packed.bits
    if "g_idx" not in parts:
        return bits
    found, rest = divmod(parts["qweight"].shape[0] * _WORD_BITS, len(parts["g_idx"]))
    if rest or found not in (4, 8):
        raise _Mismatch(f"{found} bits a value, where 4 or 8 are read")
    return found


def _awq(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """AWQ: groups of columns; qweight is ``[in, out / 8]``, scales ``[groups, out]``."""
    words, scales = parts["qweight"], parts["scales"].T
    zeros = _unpack_awq(parts["qzeros"])
    columns = _columns(None, words.shape[0], scales.shape[1], packed.group_size)

    def values(chunk: slice) -> torch.Tensor:
        return _unpack_awq(words[:, chunk.start // 8 : -(-chunk.stop // 8)]).T

    return _Quantized(values, scales, _each(scales), columns, zeros.T)


def _unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """Unpack AWQ's columns ``[rows, words]`` in order, ``[rows, words * 8]``."""
    by_word = _unpack(words, 4).reshape(len(words), -1, len(_AWQ_ORDER))
    return by_word[:, :, torch.tensor(_AWQ_ORDER).argsort()].flatten(1)


def _packed_integers(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """compressed-tensors: signed integers, stored plus half their range, in rows of words."""
    num_rows, num_columns = (int(one) for one in parts["weight_shape"])
    words, scales = parts["weight_packed"], parts["weight_scale"]
    fitting = [
        bits for bits in packed.bits if -(-num_columns * bits // _WORD_BITS) == words.shape[1]
    ]
    if len(fitting) != 1 or len(words) != num_rows:
        raise _Mismatch(
            f"{[num_rows, num_columns]} integers of {packed.bits} bits are not {list(words.shape)}"
        )
    (bits,) = fitting
    half = 1 << (bits - 1)
    zeros = parts.get("weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:  # packed by columns
        zeros = _unpack(zeros.T, bits).T[:num_rows] - half
    is_single = scales.numel() == 1
    scales = scales.reshape(1 if is_single else num_rows, -1)
    groups = parts.get("weight_g_idx")
    groups = None if groups is None or bool((groups < 0).all()) else groups
    return _Quantized(
        lambda chunk: _unpack(words[chunk], bits)[:, :num_columns] - half,
        scales,
        _each(words) * (not is_single),
        _columns(groups, num_columns, scales.shape[1], -1),
        None if zeros is None else zeros.reshape(scales.shape),
    )


def _scaled(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """float8 and int8: a scale is that of a block, a row, a group of columns, or all values."""
    weight = parts["weight"]
    scales = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scales is None or weight.ndim != 2:
        raise _Mismatch("no matrix and its scales")
    if scales.dtype == torch.uint8:  # a power of two each, in bytes of no type
        scales = scales.view(torch.float8_e8m0fnu)
    scales, rows, columns = _grid(scales.float(), weight, packed.block)
    zeros = parts.get("weight_zero_point")
    zeros = None if zeros is None else zeros.reshape(scales.shape)
    return _Quantized(lambda chunk: weight[chunk], scales, rows, columns, zeros)


def _grid(
    scales: torch.Tensor, weight: torch.Tensor, block: tuple[int, int] | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return scales as a matrix, and the row and column of it for each of a weight's."""
    num_rows, num_columns = weight.shape
    rows, columns = torch.arange(num_rows), torch.arange(num_columns)
    if scales.numel() == 1:
        return scales.reshape(1, 1), rows * 0, columns * 0
    if scales.ndim == 4:  # ModelOpt's blocks are [rows, 1, columns, 1]
        scales = scales[:, 0, :, 0]
    if block is not None:
        rows_of, columns_of = rows // block[0], columns // block[1]
        if scales.shape == (int(rows_of[-1]) + 1, int(columns_of[-1]) + 1):
            return scales, rows_of, columns_of
    if scales.shape == (num_rows,):
        scales = scales.unsqueeze(1)
    if scales.ndim == 2 and len(scales) == num_rows and num_columns % scales.shape[1] == 0:
        return scales, rows, columns // (num_columns // scales.shape[1])
    raise _Mismatch(
        f"scales {list(scales.shape)} are of no block, row or group of {list(weight.shape)}"
    )


def _bitsandbytes_4bit(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """bitsandbytes nf4 and fp4: a value of a map times a maximum, by blocks of the flat weight."""
    state: dict[str, Any] = json.loads(bytes(parts["state"].to(torch.uint8).tolist()))
    size, shape = _block_size(state, "blocksize"), tuple(int(one) for one in state["shape"])
    pairs = parts["weight"].flatten().view(torch.uint8)
    if pairs.numel() * 2 < torch.Size(shape).numel():
        raise _Mismatch(f"{pairs.numel()} bytes are not a weight of {list(shape)}")
    blocks = torch.nn.functional.pad(pairs, (0, -pairs.numel() % (size // 2)))
    blocks = blocks.reshape(-1, size // 2)
    map_ = parts["quant_map"].float()

    def values(chunk: slice) -> torch.Tensor:
        # The first of two values is in the higher bits.
        halves = torch.stack((blocks[chunk] >> 4, blocks[chunk] & 0xF), -1)
        return map_[halves.flatten(1).int()]

    absmax = _absmax(parts, state).reshape(-1, 1)
    return _Quantized(values, absmax, _each(blocks), torch.zeros(size).int(), shape=shape)


def _absmax(parts: _Parts, state: Mapping[str, Any]) -> torch.Tensor:
    """Return the maxima of blocks, which may be quantized themselves."""
    absmax = parts["absmax"]
    if "nested_absmax" not in parts:
        return absmax.float()
    values = parts["nested_quant_map"].float()[absmax.int()]
    blocks = torch.arange(len(values)) // _block_size(state, "nested_blocksize")
    return values * parts["nested_absmax"].float()[blocks] + float(state["nested_offset"])


def _block_size(state: Mapping[str, Any], key: str) -> int:
    size = int(state[key])
    if not 2 <= size <= _MAX_BLOCK_SIZE:
        raise _Mismatch(f"its {key} is {size}")
    return size


def _bitsandbytes_8bit(packed: PackedWeight, parts: _Parts) -> _Quantized:
    """bitsandbytes LLM.int8(): multiples of a row's maximum over 127."""
    form = parts.get("weight_format")
    if form is not None and form.numel() == 1 and int(form) != 0:
        raise _Mismatch("its rows are in the order of a GPU's kernels; save it again by rows")
    weight = parts["weight"]
    scales = parts["SCB"].float().reshape(len(weight), 1) / _INT8_MAX
    columns = torch.zeros(weight.shape[1]).int()
    return _Quantized(lambda chunk: weight[chunk], scales, _each(weight), columns)


def _each(matrix: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(matrix))


def _columns(
    groups: torch.Tensor | None, num_columns: int, num_groups: int, size: int
) -> torch.Tensor:
    """Return the group of each column; ``size`` is that of a group, or -1."""
    if groups is not None:
        if len(groups) != num_columns or int(groups.min()) < 0 or int(groups.max()) >= num_groups:
            raise _Mismatch(f"g_idx does not name one of {num_groups} groups for each column")
        return groups.long()
    size = size if size > 0 else -(-num_columns // num_groups)
    if -(-num_columns // size) != num_groups:
        raise _Mismatch(f"{num_columns} columns in groups of {size} are not {num_groups} groups")
    return torch.arange(num_columns) // size


_FORMULAS: dict[Layout, Callable[[PackedWeight, _Parts], _Quantized]] = {
    Layout.GPTQ: _gptq,
    Layout.AWQ: _awq,
    Layout.PACKED_INTEGERS: _packed_integers,
    Layout.SCALED: _scaled,
    Layout.BITSANDBYTES_4BIT: _bitsandbytes_4bit,
    Layout.BITSANDBYTES_8BIT: _bitsandbytes_8bit,
}
