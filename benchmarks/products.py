"""Measures a lower bound: tokenization and only the multiplications that the samples need.

An implementation that takes as long wastes nothing, at the speed of the fastest library at hand in
the same run: torch's own products (MKL on CPUs with x86), or oneDNN with plain or packed weights.

    python benchmarks/products.py --dtype bfloat16

prints the speed of each, and which one the bound uses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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
    fastest = _fastest(_all_products(device, dtype, _SIDES[torch.device(device).type]))
    speed = fastest.operations / _seconds(fastest, 1)
    print(f"matrix products alone: {fastest.name}, {speed / 1e9:.0f} GFLOP/s", flush=True)

    def multiply(operations: float) -> None:
        _seconds(fastest, operations / fastest.operations)

    return multiply


def matmul_peak(device: str, dtype: str, sides: Sequence[int] | None = None) -> float:
    """Measure the operations per second of the fastest square matrix product.

    ``sides`` are the sizes tried, by default those that suit the device.
    """
    fastest = _fastest(_all_products(device, dtype, sides or _SIDES[torch.device(device).type]))
    return _TRIED * fastest.operations / min(_seconds(fastest, _TRIED) for _ in range(3))


@dataclass(frozen=True, slots=True)
class _Product:
    """A way to multiply the first rows of a square matrix by another one."""

    library: str
    matrix: torch.Tensor
    multiply: Callable[[torch.Tensor], object]

    @property
    def name(self) -> str:
        """The library and the size."""
        return f"{self.library}, {len(self.matrix)} by {len(self.matrix)}"

    @property
    def operations(self) -> float:
        """Count the operations of one product; a multiply-add is two."""
        return 2.0 * len(self.matrix) ** 3


def _all_products(device: str, dtype: str, sides: Sequence[int]) -> Iterator[_Product]:
    """Yield the ways to multiply matrices of each size."""
    for side in sides:
        matrix = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
        yield _Product("torch", matrix, _torch_product(matrix))
        if torch.device(device).type == "cpu":
            yield from _onednn_products(matrix)


def _torch_product(matrix: torch.Tensor) -> Callable[[torch.Tensor], object]:
    out = torch.empty_like(matrix)
    return lambda rows: torch.mm(rows, matrix, out=out[: len(rows)])


def _onednn_products(matrix: torch.Tensor) -> Iterator[_Product]:
    """Yield oneDNN's products, if this build of torch has its operators for linear layers."""
    operators: Any = torch.ops.mkldnn
    try:
        packed = operators._reorder_linear_weight(matrix, len(matrix))
        for library, weight in (("oneDNN", matrix), ("oneDNN packed", packed)):

            def multiply(rows: torch.Tensor, weight: torch.Tensor = weight) -> object:
                return operators._linear_pointwise(rows, weight, None, "none", [], "")

            multiply(matrix)
            yield _Product(library, matrix, multiply)
    except (RuntimeError, AttributeError, TypeError):
        return


def _fastest(products: Iterator[_Product]) -> _Product:
    tried = list(products)
    for product in tried:
        _seconds(product, 1)  # warms up
    return min(tried, key=lambda product: _seconds(product, _TRIED) / product.operations)


@torch.inference_mode()
def _seconds(product: _Product, times: float) -> float:
    """Multiply ``times`` times; return the seconds taken."""
    synchronize(product.matrix.device)
    started = time.perf_counter()
    for _ in range(int(times)):
        product.multiply(product.matrix)
    product.multiply(product.matrix[: round(times % 1 * len(product.matrix))])
    synchronize(product.matrix.device)
    return time.perf_counter() - started


def main() -> None:
    """Print the speed of each library and size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    options = parser.parse_args()
    sides = _SIDES[torch.device(options.device).type]
    tried = list(_all_products(options.device, options.dtype, sides))
    for product in tried:
        _seconds(product, 1)  # warms up
        speed = _TRIED * product.operations / min(_seconds(product, _TRIED) for _ in range(3))
        print(f"{product.name}: {speed / 1e9:.0f} GFLOP/s")
    print(f"fastest: {_fastest(iter(tried)).name}")


if __name__ == "__main__":
    main()
