"""The bound of a group: the multiplications that its tokens need, and nothing else.

Whoever takes as long wastes nothing, at the speed that torch multiplies with in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import transformers as hf
from children import function_in_child
from work import Sample, Task, Way

__all__ = ["operations", "products"]

#: Sides of square matrices: the fastest is what the device can do.
_SIDES = {"cpu": (1024, 1536, 2048), "cuda": (4096, 8192)}
_TRIED = 8


@contextmanager
def products(task: Task) -> Iterator[dict[str, Way]]:
    """Yield the way that only multiplies, square matrices, as much as the group needs it."""
    with function_in_child(_make_multiplier, task) as multiply:
        yield {"matrix products alone": Way(multiply)}


def operations(config: hf.LlamaConfig, prompt: int, ends: Sequence[int]) -> float:
    """Count what a Llama has to compute for a prompt and its completions, each token once.

    ``prompt`` and ``ends`` are in tokens. A layer multiplies a token by its weights (4 h^2 of
    attention, 3 h m of its gated MLP), and twice h numbers for each token that it sees; a
    multiplication with its addition is two operations. Of the last layer only keys and values are
    needed of all tokens.
    """
    hidden, middle = config.hidden_size, config.intermediate_size
    tokens = prompt + sum(ends)
    pairs = prompt * (prompt + 1) / 2 + sum(end * prompt + end * (end + 1) / 2 for end in ends)
    layer = tokens * (4 * hidden**2 + 3 * hidden * middle) + pairs * 2 * hidden
    last = tokens * 2 * hidden**2
    return 2 * ((config.num_hidden_layers - 1) * layer + last)


def _make_multiplier(task: Task) -> Callable[[Sequence[Sample]], list[float]]:
    config = hf.AutoConfig.from_pretrained(task.folder)
    device, dtype = torch.device(task.device), getattr(torch, task.dtype)
    sides = _SIDES[device.type]
    tried = {side: torch.randn(side, side, device=device, dtype=dtype) for side in sides}
    fastest = min(sides, key=lambda side: _multiply(tried[side], _TRIED) / side**3)

    def multiply(samples: Sequence[Sample]) -> list[float]:
        prompt = len(samples[0].prompt.split())
        ends = [len(task.text(sample).split()) - prompt for sample in samples]
        _multiply(tried[fastest], round(operations(config, prompt, ends) / (2 * fastest**3)))
        return []

    return multiply


@torch.inference_mode()
def _multiply(matrix: torch.Tensor, times: int) -> float:
    """Multiply a matrix by itself so many times; return the seconds that it took."""
    out = matrix @ matrix
    _wait_for(matrix)
    started = time.perf_counter()
    for _ in range(times):
        torch.mm(matrix, matrix, out=out)
    _wait_for(matrix)
    return time.perf_counter() - started


def _wait_for(matrix: torch.Tensor) -> None:
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
