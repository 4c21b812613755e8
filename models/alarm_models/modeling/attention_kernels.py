"""Attention on CPUs: torch's fused kernel, or the compiled one where it is faster.

Both are measured on a group when the first model of a dtype is loaded.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from itertools import repeat

import torch

from alarm_models.modeling.kernel_timing import LEAST_GAIN, TOLERANCE, is_exact, measured_gain
from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.batch import ForwardContext, pack
from alarm_models.modeling.packed.compiled import CompiledBackend
from alarm_models.modeling.packed.sdpa import AttentionParams, SdpaBackend

__all__ = ["COMPILED", "FUSED", "fastest_attention", "measure_attention"]

#: The backend that is used unless another one is faster.
FUSED = SdpaBackend()

COMPILED = CompiledBackend()

#: The group that is measured: tokens of the prompt, samples, tokens of each completion.
_PROMPT, _NUM_SAMPLES, _COMPLETION = 256, 4, 48

_NUM_HEADS, _HEAD_DIM = 8, 64

_logger = logging.getLogger(__name__)


@cache
def fastest_attention(dtype: torch.dtype, num_threads: int) -> AttentionBackend:
    """Return the fastest exact attention backend on this processor."""
    if torch.are_deterministic_algorithms_enabled():
        # A measurement may choose otherwise after a restart, and the last bits would differ.
        return FUSED
    return measure_attention(dtype, num_threads)


@torch.inference_mode()
def measure_attention(dtype: torch.dtype, num_threads: int) -> AttentionBackend:
    """Measure the backends on a group; return the faster one, if it is exact."""
    if dtype not in TOLERANCE or not COMPILED.supports(torch.device("cpu"), dtype):
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

    gain = 0.0
    if is_exact(run(COMPILED), run(FUSED)):
        gain = measured_gain(partial(run, FUSED), partial(run, COMPILED))
    chosen: AttentionBackend = COMPILED if gain >= LEAST_GAIN else FUSED
    _logger.info(
        "attention in %s with %d threads: %s (%s is %.2f times as fast)",
        str(dtype).removeprefix("torch."),
        num_threads,
        chosen.name,
        COMPILED.name,
        gain,
    )
    return chosen
