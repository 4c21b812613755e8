"""Attention on CPUs: torch's fused kernel, or large matrix products where they are faster.

The fused kernel calls matrix products on small tiles and stores no logits. With AVX2 it is faster;
a processor whose products are much faster on large operands gains by storing the logits. All are
measured on a group when the first model of a dtype is loaded.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from itertools import repeat

import torch

from alarm_models.modeling.kernel_timing import LEAST_GAIN, measured_gain
from alarm_models.modeling.linear_kernels import has_bfloat16
from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.batch import ForwardContext, pack
from alarm_models.modeling.packed.matmul import MatmulBackend
from alarm_models.modeling.packed.sdpa import AttentionParams, SdpaBackend

__all__ = ["FUSED", "MATMULS", "fastest_attention", "measure_attention"]

#: The backend that is used unless another one is faster.
FUSED = SdpaBackend()

#: Without and with batched products: usually the faster one in float32, and in bfloat16.
MATMULS = (MatmulBackend(batched=False), MatmulBackend(batched=True))

#: The group that is measured: tokens of the prompt, samples, tokens of each completion.
_PROMPT, _NUM_SAMPLES, _COMPLETION = 512, 8, 72

_NUM_HEADS, _HEAD_DIM = 8, 64

#: The largest difference between the backends, as a share of the outputs' size.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

_logger = logging.getLogger(__name__)


@cache
def fastest_attention(dtype: torch.dtype, num_threads: int) -> AttentionBackend:
    """Return the fastest exact attention backend on this processor."""
    if torch.are_deterministic_algorithms_enabled():
        # A measurement may choose otherwise after a restart, and the last bits would differ.
        return FUSED
    if dtype is torch.bfloat16 and not has_bfloat16():
        return FUSED  # products of large matrices in bfloat16 are emulated and very slow
    return measure_attention(dtype, num_threads)


@torch.inference_mode()
def measure_attention(dtype: torch.dtype, num_threads: int) -> AttentionBackend:
    """Measure the backends on a group; return the fastest that is exact."""
    if dtype not in _TOLERANCE:
        return FUSED
    prompt = tuple(range(_PROMPT))
    samples = [(*prompt, *repeat(_PROMPT + n, _COMPLETION)) for n in range(_NUM_SAMPLES)]
    context = ForwardContext(pack(samples, share=True), (), ())
    seed = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, len(context.batch.ids), _NUM_HEADS, _HEAD_DIM, generator=seed)
        .to(dtype)
        .transpose(1, 2)
        for _ in range(3)
    )
    params = AttentionParams(_HEAD_DIM**-0.5, causal=True)

    def run(backend: AttentionBackend) -> torch.Tensor:
        return backend.attend(query, key, value, context, params)

    outputs, gains = run(FUSED), dict[AttentionBackend, float]()
    for backend in MATMULS:
        try:
            difference = (run(backend) - outputs).float().norm()
            if difference <= _TOLERANCE[dtype] * outputs.float().norm():
                gains[backend] = measured_gain(lambda: run(FUSED), partial(run, backend))
        except (RuntimeError, AttributeError, TypeError) as error:
            _logger.debug("%s does not run in %s: %s", backend.name, dtype, error)
    fastest = max(gains, key=gains.__getitem__, default=FUSED)
    chosen = fastest if gains.get(fastest, 0) >= LEAST_GAIN else FUSED
    _logger.info(
        "attention in %s with %d threads: %s (%s)",
        str(dtype).removeprefix("torch."),
        num_threads,
        chosen.name,
        ", ".join(f"{one.name} is {gain:.2f} times as fast" for one, gain in gains.items()),
    )
    return chosen
