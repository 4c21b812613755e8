"""Measures a lower bound: tokenization and only the multiplications that the samples need.

An implementation that takes as long wastes nothing, at the speed of torch in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers as hf
from children import function_in_child
from operations import Batch
from plain import encode
from work import Sample, Task, Way

__all__ = ["multiplier", "products"]

#: Counts the operations of a model with a given configuration for a batch.
Count = Callable[[Any, Batch], float]

#: Sides of the square matrices tried; the fastest is used.
_SIDES = {"cpu": (1024, 1536, 2048), "cuda": (4096, 8192)}
_TRIED = 8


def products(count: Count) -> Callable[[Task], AbstractContextManager[Mapping[str, Way]]]:
    """Return the rival that only multiplies square matrices, with the samples' operations."""

    @contextmanager
    def rival(task: Task) -> Iterator[dict[str, Way]]:
        config = hf.AutoConfig.from_pretrained(task.folder)
        tokenizer = hf.AutoTokenizer.from_pretrained(task.folder)
        with multiplier(task.device, task.dtype) as multiply:

            def score(samples: Sequence[Sample]) -> list[float]:
                texts = [task.text(sample) for sample in samples]
                multiply(count(config, encode(tokenizer, task.kind, texts)))
                return []

            yield {"matrix products alone": Way(score)}

    return rival


@contextmanager
def multiplier(device: str, dtype: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that computes a number of operations in a child process."""
    with function_in_child(_make_multiplier, device, dtype) as multiply:
        yield multiply


def _make_multiplier(device: str, dtype: str) -> Callable[[float], None]:
    kind, number = torch.device(device), getattr(torch, dtype)
    sides = _SIDES[kind.type]
    tried = {side: torch.randn(side, side, device=kind, dtype=number) for side in sides}
    for matrix in tried.values():
        _multiply(matrix, _TRIED)  # warms up
    fastest = min(sides, key=lambda side: _multiply(tried[side], _TRIED) / side**3)

    def multiply(operations: float) -> None:
        _multiply(tried[fastest], operations / (2 * fastest**3))

    return multiply


@torch.inference_mode()
def _multiply(matrix: torch.Tensor, times: float) -> float:
    """Multiply a matrix by itself ``times`` times; return the seconds taken."""
    out = torch.empty_like(matrix)
    _wait_for(matrix)
    started = time.perf_counter()
    for _ in range(int(times)):
        torch.mm(matrix, matrix, out=out)
    rest = round(times % 1 * len(matrix))
    torch.mm(matrix[:rest], matrix, out=out[:rest])
    _wait_for(matrix)
    return time.perf_counter() - started


def _wait_for(matrix: torch.Tensor) -> None:
    if matrix.is_cuda:
        torch.cuda.synchronize(matrix.device)
