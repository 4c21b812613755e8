"""Linear kernels on CPUs: torch's own, or oneDNN with packed weights where that is faster.

torch multiplies float32 matrices with MKL, which uses no AVX-512 on processors that are not
Intel's, and reorders a weight of 16 bits in each call. oneDNN with weights in its blocked layout
does neither. Both are measured when the first model is loaded, on processors with AVX-512.

The operators are those that `torch.compile` uses on CPUs. They are not public: where one is
missing, fails or is inexact, torch's own kernel is used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial
from statistics import geometric_mean
from typing import Any

import torch

from alarm_models.modeling.kernel_timing import LEAST_GAIN, TOLERANCE, is_exact, measured_gain

__all__ = [
    "PACKED",
    "PLAIN",
    "PackedLinear",
    "count_packed",
    "fastest_linear",
    "has_bfloat16",
    "measure_linear",
    "pack_linears",
    "unpack_linears",
]

#: The name of torch's own kernel.
PLAIN = "torch"

#: The name of the packed kernel.
PACKED = "onednn-packed"

#: Rows for which a weight's layout is chosen: those of a small batch.
_ROWS = 256

#: Rows that are measured: those of a short sample, and of a small batch.
_MEASURED_ROWS = (16, _ROWS)

#: Width of the weight that is measured.
_WIDTH = 768

_logger = logging.getLogger(__name__)

_operators: Any = torch.ops.mkldnn


#: Instructions with which a CPU multiplies in bfloat16.
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")


def has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; others convert, which is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16)


class PackedLinear(torch.nn.Module):
    """A linear layer with its weight in oneDNN's blocked layout, for inference on a CPU.

    It holds the same numbers as the layer that it replaces and needs as much memory.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed: torch.Tensor = _operators._reorder_linear_weight(linear.weight.data, _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """The weight, ``[out, in]``, unpacked by each access."""
        return self._packed.to_dense()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``[..., out]`` for states ``[..., in]``."""
        product: torch.Tensor = _operators._linear_pointwise(
            states, self._packed, self.bias, "none", [], ""
        )
        return product

    def unpacked(self) -> torch.nn.Linear:
        """Return the layer with a plain weight, bit for bit."""
        linear = torch.nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = torch.nn.Parameter(self.weight, requires_grad=False)
        linear.bias = self.bias
        return linear.eval()


@cache
def fastest_linear(dtype: torch.dtype, num_threads: int) -> str:
    """Return the name of the fastest exact kernel on this processor."""
    if torch.are_deterministic_algorithms_enabled():
        # A measurement may choose otherwise after a restart, and the last bits would differ.
        return PLAIN
    if not torch.cpu.get_capabilities().get("avx512_f", False):
        return PLAIN  # with AVX2 both are equally fast
    return measure_linear(dtype, num_threads)


@torch.inference_mode()
def measure_linear(dtype: torch.dtype, num_threads: int) -> str:
    """Measure the kernels; return the name of the fastest that is exact."""
    if dtype not in TOLERANCE:
        return PLAIN
    seed = torch.Generator().manual_seed(0)
    every = torch.randn(_ROWS, _WIDTH, generator=seed).to(dtype)
    plain = torch.nn.Linear(_WIDTH, _WIDTH, dtype=dtype)
    plain.weight.copy_(torch.randn(_WIDTH, _WIDTH, generator=seed))
    gains = []
    try:
        packed = PackedLinear(plain)
        for rows in _MEASURED_ROWS:
            states = every[:rows]
            if not is_exact(packed(states), plain(states)):
                return PLAIN
            gains.append(measured_gain(partial(plain, states), partial(packed, states)))
    except (RuntimeError, AttributeError, TypeError) as error:
        _logger.debug("linear layers in %s are not packed: %s", dtype, error)
        return PLAIN
    gain = geometric_mean(gains)
    name = PACKED if gain >= LEAST_GAIN and min(gains) >= 1 else PLAIN
    _logger.info(
        "linear layers in %s with %d threads: %s (packed weights are %s times as fast for %s rows)",
        str(dtype).removeprefix("torch."),
        num_threads,
        name,
        " and ".join(f"{one:.2f}" for one in gains),
        " and ".join(map(str, _MEASURED_ROWS)),
    )
    return name


@torch.inference_mode()
def pack_linears(model: torch.nn.Module) -> int:
    """Pack the linear layers of a model on a CPU in place; return how many.

    One layer at a time is held twice.
    """
    return _replace(model, torch.nn.Linear, PackedLinear)


@torch.inference_mode()
def unpack_linears(model: torch.nn.Module) -> int:
    """Undo `pack_linears`; return how many layers were packed."""
    return _replace(model, PackedLinear, PackedLinear.unpacked)


def count_packed(model: torch.nn.Module) -> int:
    """Return how many layers of a model are packed."""
    return sum(isinstance(one, PackedLinear) for one in model.modules())


def _replace(model: torch.nn.Module, kind: type, convert: Callable[[Any], torch.nn.Module]) -> int:
    num_replaced = 0
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is kind:
                setattr(module, name, convert(child))
                num_replaced += 1
    return num_replaced
