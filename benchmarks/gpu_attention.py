"""Compares the variable-length attention backend with the plain one, on single packed batches.

Both are compared with attention in float64, sample by sample.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from timing import synchronize

from alarm_models.modeling.packed.attention import AttentionBackend
from alarm_models.modeling.packed.batch import ForwardContext, pack
from alarm_models.modeling.packed.sdpa import AttentionParams, SdpaBackend, Window
from alarm_models.modeling.packed.varlen import VarlenBackend, varlen_batches
from alarm_models.types import Span

__all__ = ["attention_rows"]

_DTYPES = ("bfloat16", "float32")
_PLAIN, _VARLEN = SdpaBackend(), VarlenBackend()
#: Calls per measurement, and measurements, of which the first one warms up.
_CALLS = {"cuda": (5, 6), "cpu": (1, 2)}


@dataclass(frozen=True, slots=True)
class _Case:
    """One layer's attention over a batch of samples of token ids."""

    name: str
    samples: Sequence[tuple[int, ...]]
    share: bool = True
    causal: bool = True
    window: Window | None = None
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128


def attention_rows(device: str, *, is_toy: bool) -> Iterator[dict[str, Any]]:
    """Yield the errors, times and memory of both backends for each case and dtype."""
    for case in _cases(1, 2) if is_toy else _cases(20, 32):
        for dtype in _DTYPES:
            yield _measure(case, getattr(torch, dtype), torch.device(device))


def _cases(unit: int, num_groups: int) -> list[_Case]:
    """Return cases whose lengths are multiples of a number of tokens."""
    choose = Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(choose.randrange(30_000) for _ in range(count * unit))

    def tree(prefix: tuple[int, ...], lengths: Sequence[int], children: int) -> list[Any]:
        """Return samples that share a prefix on as many levels as there are lengths but one."""
        if not lengths:
            return [prefix]
        branches = [prefix + ids(lengths[0]) for _ in range(children)]
        return [one for branch in branches for one in tree(branch, lengths[1:], children)]

    group = tree(ids(50), [10], 16)
    groups = [one for _ in range(num_groups) for one in tree(ids(20), [3], 8)]
    conversations = tree(ids(20), [20, 10, 5], 3)
    long = [ids(100) for _ in range(8)]
    texts = [ids(75) for _ in range(8)]
    side = 12 * unit
    return [
        _Case("a group of 16", group),
        _Case(f"{num_groups} groups of 8", groups),
        _Case("27 samples, prefixes of depth 3", conversations),
        _Case("8 samples, sliding window", long, share=False, window=Window(side, 0)),
        _Case(
            "8 samples, Longformer",
            texts,
            share=False,
            causal=False,
            window=Window(side, side),
            heads=12,
            kv_heads=12,
            dim=64,
        ),
    ]


@torch.inference_mode()
def _measure(case: _Case, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = pack(case.samples, share=case.share)

    def states(heads: int) -> torch.Tensor:
        # [1, heads, tokens, dim]
        return torch.randn(1, heads, len(batch.ids), case.dim, device=device, dtype=dtype)

    query, key, value = states(case.heads), states(case.kv_heads), states(case.kv_heads)
    context = ForwardContext(batch, [], [])
    params = AttentionParams(case.dim**-0.5, case.causal, case.window)
    exact = _exact(case, query, key, value, context)

    def calls(backend: AttentionBackend) -> Callable[[], torch.Tensor]:
        return lambda: backend.attend(query, key, value, context, params)

    row: dict[str, Any] = {"case": case.name, "dtype": _name(dtype), "tokens": len(batch.ids)}
    plain = calls(_PLAIN)
    row |= _figures("plain", plain, exact, device)
    if not _VARLEN.supports(device, dtype):
        return row | {"note": f"varlen does not support {_name(dtype)} on {device.type}"}
    varlen = calls(_VARLEN)
    try:
        row |= _figures("varlen", varlen, exact, device)
    except (RuntimeError, TypeError, ValueError) as error:
        return row | {"note": f"varlen fails: {type(error).__name__}: {error}"}
    return row | {
        "difference": _largest(varlen(), plain()),
        "plain / varlen": row["plain ms"] / row["varlen ms"],
        # Once per forward pass, not per layer.
        "varlen indices ms": _milliseconds(lambda: varlen_batches(batch, device), device),
    }


def _figures(
    name: str, run: Callable[[], torch.Tensor], exact: torch.Tensor, device: torch.device
) -> dict[str, Any]:
    return {
        f"{name} ms": _milliseconds(run, device),
        f"{name} error": _largest(run(), exact),
        f"{name} MiB": _peak_mib(run, device),
    }


def _exact(
    case: _Case,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    context: ForwardContext,
) -> torch.Tensor:
    """Attend in float64 with one mask per sample; return ``[1, tokens, heads, dim]``."""
    out = query.new_empty(query.transpose(1, 2).shape, dtype=torch.float64)
    times = case.heads // case.kv_heads
    for index, sample in enumerate(case.samples):
        rows = context.batch.positions_in_batch(index, Span(0, len(sample)))
        queries = query[0][:, rows].double()  # [heads, tokens, dim]
        keys, values = (
            states[0][:, rows].double().repeat_interleave(times, 0) for states in (key, value)
        )
        place = torch.arange(len(rows), device=query.device)
        distance = place - place.unsqueeze(1)  # from each query to each key
        mask = distance <= 0 if case.causal else torch.ones_like(distance, dtype=torch.bool)
        if case.window is not None:
            mask &= (distance >= -case.window.back) & (distance <= case.window.ahead)
        logits = queries @ keys.transpose(-1, -2) * case.dim**-0.5
        weights = logits.masked_fill(~mask, float("-inf")).softmax(-1)
        out[0, rows] = (weights @ values).transpose(0, 1)
    return out


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Return the median time of a call; the device is idle before each measurement."""
    calls, measurements = _CALLS[device.type]
    measured = []
    for _ in range(measurements):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize(device)
        measured.append((time.perf_counter() - started) / calls)
    return 1000 * statistics.median(measured[1:])


def _peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Return the most memory that a call takes beyond what is held; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    run()
    synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - held) / 2**20


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
