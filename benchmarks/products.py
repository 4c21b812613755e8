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
from timing import synchronize
from work import Sample, Task, Way

__all__ = ["matmul_peak", "multiplier", "products"]

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
    fastest = _fastest_matrix(device, dtype, _SIDES[torch.device(device).type])

    def multiply(operations: float) -> None:
        _multiply(fastest, operations / _operations(fastest))

    return multiply


def matmul_peak(device: str, dtype: str, sides: Sequence[int] | None = None) -> float:
    """Measure the operations per second of the fastest square matrix product.

    ``sides`` are the sizes tried, by default those that suit the device.
    """
    fastest = _fastest_matrix(device, dtype, sides or _SIDES[torch.device(device).type])
    return _TRIED * _operations(fastest) / min(_multiply(fastest, _TRIED) for _ in range(3))


def _fastest_matrix(device: str, dtype: str, sides: Sequence[int]) -> torch.Tensor:
    number = getattr(torch, dtype)
    tried = [torch.randn(side, side, device=device, dtype=number) for side in sides]
    for matrix in tried:
        _multiply(matrix, _TRIED)  # warms up
    return min(tried, key=lambda matrix: _multiply(matrix, _TRIED) / _operations(matrix))


def _operations(matrix: torch.Tensor) -> float:
    """Count the operations of one product; a multiply-add is two."""
    return 2.0 * len(matrix) ** 3


@torch.inference_mode()
def _multiply(matrix: torch.Tensor, times: float) -> float:
    """Multiply a matrix by itself ``times`` times; return the seconds taken."""
    out = torch.empty_like(matrix)
    synchronize(matrix.device)
    started = time.perf_counter()
    for _ in range(int(times)):
        torch.mm(matrix, matrix, out=out)
    rest = round(times % 1 * len(matrix))
    torch.mm(matrix[:rest], matrix, out=out[:rest])
    synchronize(matrix.device)
    return time.perf_counter() - started
