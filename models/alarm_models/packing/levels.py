"""A row's attentions by level: what each kernel call attends over, in variable-length form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from alarm_models.packing.layout import Layout
from alarm_models.sample import Span

__all__ = ["Level", "levels_of"]


class Level(NamedTuple):
    """Sequences of queries, each beside the sequence of keys that it attends over.

    ``queries`` and ``keys``, ``[tokens]``, say where in the row and among the keys the sequences
    stand, end to end. Sequence n of the queries is ``[query_starts[n], query_starts[n + 1])`` of
    them, and so for keys: int32, as kernels want it.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    query_starts: torch.Tensor
    key_starts: torch.Tensor
    longest_query: int
    longest_key: int


def levels_of(layout: Layout, device: torch.device) -> list[Level]:
    """Return first every run over itself, then for each depth what goes on from runs there.

    A run's continuations follow it directly, so that no query comes twice in a level; over all
    levels a token sees the whole of its sample's beginning once.
    """
    own = [(run.row, run.keys) for run in layout.runs if _length(run.row)]
    by_depth: list[list[tuple[Span, Span]]] = []
    open_until: list[int] = []
    for run in layout.runs:
        while open_until and open_until[-1] <= run.row.start:
            open_until.pop()
        if run.reach > run.row.end and _length(run.keys):
            depth = len(open_until)
            if depth == len(by_depth):
                by_depth.append([])
            by_depth[depth].append((Span(run.row.end, run.reach), run.keys))
            open_until.append(run.reach)
    return [_level(pairs, device) for pairs in (own, *by_depth)]


def _level(pairs: Sequence[tuple[Span, Span]], device: torch.device) -> Level:
    queries, keys = ([pair[kind] for pair in pairs] for kind in (0, 1))
    return Level(
        _places(queries, device),
        _places(keys, device),
        _starts(queries, device),
        _starts(keys, device),
        max(map(_length, queries)),
        max(map(_length, keys)),
    )


def _places(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    places = torch.cat([torch.arange(*span) for span in spans])
    return places.to(device)


def _starts(spans: Sequence[Span], device: torch.device) -> torch.Tensor:
    starts = [0, *accumulate(map(_length, spans))]
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _length(span: Span) -> int:
    return span.end - span.start
