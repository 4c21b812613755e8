"""The compiled kernels of `attention.cpp` and `pointwise.cpp`, called on tensors.

There is a shared library for each instruction set, compiled when the package was built. The kernels
run on the threads of torch's OpenMP pool. Without a library for this processor or build of torch,
`compiled_kernels` returns None, and torch's own operators are used.
"""

from __future__ import annotations

import ctypes
import logging
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["NO_KERNELS", "CompiledKernels", "compiled_kernels"]

#: The name of the kernels where there are none.
NO_KERNELS = "none"

#: Numbers up to which waking other threads takes longer.
_LEAST_SHARE = 16384

#: Maximum width of a head.
_MAX_DIM = 256

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_float

#: The arguments of each function, without its number of threads.
_ARGUMENTS = {
    "attend": [*[_POINTER] * 4, *[_SIZE] * 10, _FLOAT, _POINTER, _POINTER, _SIZE],
    "rms_norm": [_POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _FLOAT],
    "residual_norm": [*[_POINTER] * 5, _SIZE, _SIZE, _FLOAT],
    "gelu": [_POINTER, _POINTER, _SIZE],
    "gated_silu": [_POINTER, _POINTER, _POINTER, _SIZE],
    "rotate": [_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE],
}

_logger = logging.getLogger(__name__)


class CompiledKernels:
    """The kernels of one instruction set for tensors of one dtype.

    Tensors are on the CPU and, except those of attention, contiguous. Others raise `ValueError`:
    the kernels would read what is behind their memory.
    """

    def __init__(self, library: ctypes.CDLL, name: str, dtype: torch.dtype) -> None:
        """Raise `AttributeError` if the library has no kernels for the dtype."""
        self.name, self.dtype = name, dtype
        suffix = str(dtype).removeprefix("torch.")
        self._functions = {
            kernel: getattr(library, f"{kernel}_{suffix}")
            for kernel in _ARGUMENTS
            if kernel != "gelu" or self.has_gelu
        }
        self.queries_per_block: int = library.queries_per_block()
        for kernel, function in self._functions.items():
            function.argtypes, function.restype = [*_ARGUMENTS[kernel], _SIZE], None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies of a model call the same library."""
        return compiled_kernels, (self.dtype,)

    @property
    def has_gelu(self) -> bool:
        """Whether there is a faster GELU than torch's."""
        return self.dtype is torch.float32

    def attends(self, query: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether the kernel takes heads of these widths; they are the last axis."""
        return max(query.shape[-1], value.shape[-1]) <= _MAX_DIM and query.shape[-1] % 2 == 0

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        blocks: torch.Tensor,
        segments: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from queries to keys; see `attention.cpp` for ``blocks`` and ``segments``.

        ``query`` is ``[tokens, heads, dim]``, ``key`` and ``value`` are ``[keys, heads, dim]`` with
        as many heads or fewer; returns ``[tokens, heads, dim]``.
        """
        query, key, value = (
            one
            if one.stride(2) == 1 and all(step % 2 == 0 for step in one.stride()[:2])
            else one.contiguous()
            for one in (query, key, value)
        )
        (num_tokens, num_heads, dim), (num_keys, num_kv_heads, value_dim) = query.shape, value.shape
        self._require(query, key, value, is_contiguous=False)
        _require_shape(key, num_keys, num_kv_heads, dim)
        out = query.new_empty(num_tokens, num_heads, value_dim)
        self._functions["attend"](
            query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr(),
            *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
            num_heads, num_heads // num_kv_heads, dim, value_dim, scale,
            blocks.data_ptr(), segments.data_ptr(), len(blocks),
            torch.get_num_threads() if len(blocks) * num_heads > 1 else 1,
        )  # fmt: skip
        return out

    def rms_norm(self, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Return states ``[..., width]`` divided by their root mean square, times the weight."""
        out, width = torch.empty_like(states), states.shape[-1]
        self._require(states, weight)
        _require_shape(weight, width)
        self._functions["rms_norm"](
            states.data_ptr(), weight.data_ptr(), out.data_ptr(),
            states.numel() // width, width, epsilon, _threads(states),
        )  # fmt: skip
        return out

    def residual_norm_(
        self,
        states: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        epsilon: float,
    ) -> torch.Tensor:
        """Replace states by the layer norm of their sum with the residual; return them.

        Both are ``[..., width]``.
        """
        width = states.shape[-1]
        self._require(states, residual, weight, bias)
        _require_shape(residual, *states.shape)
        _require_shape(weight, width)
        _require_shape(bias, width)
        self._functions["residual_norm"](
            states.data_ptr(), residual.data_ptr(), weight.data_ptr(), bias.data_ptr(),
            states.data_ptr(), states.numel() // width, width, epsilon, _threads(states),
        )  # fmt: skip
        return states

    def gelu_(self, states: torch.Tensor) -> torch.Tensor:
        """Replace states by their exact GELU; return them."""
        self._require(states)
        self._functions["gelu"](
            states.data_ptr(), states.data_ptr(), states.numel(), _threads(states)
        )
        return states

    def gated_silu_(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Replace the gate by ``silu(gate) * up``; return it."""
        self._require(gate, up)
        _require_shape(up, *gate.shape)
        self._functions["gated_silu"](
            gate.data_ptr(), up.data_ptr(), gate.data_ptr(), gate.numel(), _threads(gate)
        )
        return gate

    def rotate(
        self, states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> torch.Tensor:
        """Return heads ``[tokens, heads, dim]`` rotated to their positions.

        ``cosine`` and ``sine`` are ``[tokens, dim]``, with an even ``dim``.
        """
        out, (num_tokens, num_heads, dim) = torch.empty_like(states), states.shape
        self._require(states, cosine, sine)
        _require_shape(cosine, num_tokens, dim // 2 * 2)
        _require_shape(sine, num_tokens, dim // 2 * 2)
        self._functions["rotate"](
            states.data_ptr(), cosine.data_ptr(), sine.data_ptr(), out.data_ptr(),
            num_tokens, num_heads, dim, _threads(states),
        )  # fmt: skip
        return out

    def _require(self, *tensors: torch.Tensor, is_contiguous: bool = True) -> None:
        for one in tensors:
            if one.dtype is not self.dtype or one.device.type != "cpu":
                raise ValueError(f"{one.dtype} on {one.device} instead of {self.dtype} on a CPU")
            if is_contiguous and not one.is_contiguous():
                raise ValueError(f"strides {one.stride()} are not contiguous")


def _require_shape(tensor: torch.Tensor, *shape: int) -> None:
    if tensor.shape != shape:
        raise ValueError(f"shape {tuple(tensor.shape)} instead of {shape}")


def _threads(states: torch.Tensor) -> int:
    # All or one: OpenMP ends and starts threads when their number changes.
    return torch.get_num_threads() if states.numel() > _LEAST_SHARE else 1


@cache
def compiled_kernels(dtype: torch.dtype) -> CompiledKernels | None:
    """Return the kernels for a dtype on this processor; None if there are none."""
    name = _instruction_set()
    path = Path(__file__).with_name(f"kernels_{name}.so")
    try:
        # The pool that torch uses, which it has loaded; other builds of torch have another one.
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
        if library.checksum_of_sources() != _checksum_of_sources():
            _logger.warning("%s was compiled from other sources: install alarm-models again", path)
            return None
        return CompiledKernels(library, name, dtype)
    except (OSError, AttributeError) as error:
        _logger.debug("no compiled kernels for %s: %s", dtype, error)
        return None


def _checksum_of_sources() -> int:
    """Return what `hatch_build.py` compiled into the libraries."""
    checksum = 0
    for source in sorted(Path(__file__).parent.glob("*.[ch]*")):
        checksum = zlib.crc32(source.read_bytes(), checksum)
    return checksum & 0x7FFFFFFF


def _instruction_set() -> str:
    """Return the instruction set that torch's own kernels use, with bfloat16 if there is."""
    name = torch.backends.cpu.get_cpu_capability().lower()
    if name == "avx512" and torch.cpu.get_capabilities().get("avx512_bf16", False):
        return "avx512_bf16"
    return name
