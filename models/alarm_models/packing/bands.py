"""Attention within a window, by blocks of queries.

Work grows with tokens times window, not with tokens squared. What each block sees is made once for
all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from alarm_models.packing.kernels import attend, bias_of
from alarm_models.packing.layout import Layout
from alarm_models.sample import Span

__all__ = ["Band", "Block", "attend_blocks", "blocks_of"]

#: Queries a block.
_SIZE = 128


class Band(NamedTuple):
    """What a token sees of its own run: so many tokens before it and after it, and itself.

    With ``first_is_global`` every token sees the run's first one too, wherever it stands.
    """

    back: int
    ahead: int
    first_is_global: bool = False


class Block(NamedTuple):
    """Neighbouring queries, and the keys that any of them sees, as they stand in the row.

    ``first`` is where their run's first token stands, where they see it although it is not among
    the keys. ``bias``, ``[queries, keys]``, the first token's before the others, is added to
    logits; None where every query sees every key.
    """

    queries: slice
    keys: slice
    first: slice | None
    bias: torch.Tensor | None


def blocks_of(layout: Layout, device: torch.device, dtype: torch.dtype, band: Band) -> list[Block]:
    """Cut a row's runs, none of which goes on in others, into blocks."""

    @cache
    def bias(queries: int, keys: int, offset: int, with_first: bool) -> torch.Tensor | None:
        # From each query, ``offset`` after the first key, to each key.
        distance = torch.arange(keys) - torch.arange(offset, offset + queries).unsqueeze(1)
        mask = (distance >= -band.back) & (distance <= band.ahead)
        if band.first_is_global:
            if with_first:
                mask = torch.cat([mask.new_ones(queries, 1), mask], 1)
            mask[:, 0] = True
        return None if bool(mask.all()) else bias_of(mask, dtype).to(device)

    found = []
    for run in layout.runs:
        for (start, end), (low, high) in _cuts(run.row, band):
            has_first = band.first_is_global and low > run.row.start
            first = slice(run.row.start, run.row.start + 1) if has_first else None
            seen = bias(end - start, high - low, start - low, has_first)
            found.append(Block(slice(start, end), slice(low, high), first, seen))
    return found


def _cuts(row: Span, band: Band) -> Iterator[tuple[Span, Span]]:
    """Yield neighbouring queries of a run, with the keys that any of them sees."""
    # Where everybody sees everybody one block is cheapest.
    size = _SIZE if row.end - row.start > min(band.back, band.ahead) + 1 else row.end - row.start
    for start in range(row.start, row.end, max(size, 1)):
        end = min(start + size, row.end)
        yield (
            Span(start, end),
            Span(max(start - band.back, row.start), min(end + band.ahead, row.end)),
        )


def attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    target: torch.Tensor,
    scale: float,
    blocks: Sequence[Block],
    softcap: float | None = None,
) -> None:
    """Attend into ``target``; all are ``[1, heads, tokens of the row, dim]``."""
    for block in blocks:
        keys, values = key[:, :, block.keys], value[:, :, block.keys]
        if block.first is not None:
            keys = torch.cat([key[:, :, block.first], keys], 2)
            values = torch.cat([value[:, :, block.first], values], 2)
        own = query[:, :, block.queries]
        target[:, :, block.queries] = attend(
            own, keys, values, scale, softcap=softcap, bias=block.bias
        ).out
