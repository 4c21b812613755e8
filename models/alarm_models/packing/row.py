"""What a forward pass runs over, told to the layers that the pass goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple

import torch

from alarm_models.packing.beginnings import Ids
from alarm_models.packing.layout import Layout
from alarm_models.packing.memory import Past

__all__ = ["Row", "current_row", "running"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_row: ContextVar[Row] = ContextVar("row")


@dataclass(frozen=True, slots=True)
class Row:
    """What a forward pass runs over: samples laid out, and the tokens of them that are read.

    ``reads`` holds each read's sample and its place in that sample; ``places`` its place in the
    row. ``layers`` gathers each layer's keys and values where ``is_remembered``.
    """

    layout: Layout
    reads: Sequence[tuple[int, int]]
    places: Sequence[int]
    is_remembered: bool = False
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _made: dict[object, Any] = field(default_factory=dict)

    def once(self, make: Callable[[Layout, *_Ts], _T], *given: *_Ts) -> _T:
        """Return what a function makes of the layout and more, made once for all layers."""
        if (make, given) not in self._made:
            self._made[make, given] = make(self.layout, *given)
        made: _T = self._made[make, given]
        return made

    def with_known(
        self, module: torch.nn.Module, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put a layer's keys and values of the row, ``[1, heads, tokens, dim]``, among the known.

        Returns ``[1, heads, keys, dim]`` each.
        """
        if not self.is_remembered:
            return key, value
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if self.layout.known:
            key, value = self._among(key, layer, 0), self._among(value, layer, 1)
        self.layers[layer] = (key, value)
        return key, value

    def past(self, samples: Sequence[Ids], owners: Sequence[str] = ()) -> Past:
        """Return the row, once it has run, for those of the same owners that come after."""
        return Past(samples, self.layout.pieces, self.layers, owners)

    def _among(self, states: torch.Tensor, layer: int, kind: int) -> torch.Tensor:
        """Put the row's keys (kind 0) or values (1) in their places among the known."""
        parts: list[torch.Tensor] = []
        num_placed = num_known = 0
        for (start, end), known in self.layout.known:
            before, num_placed = num_placed, start - num_known
            past = known.past.layers[layer][kind]
            parts.append(states[:, :, before:num_placed])
            parts += (past[:, :, slice(*span)] for span in known.spans)
            num_known += end - start
        return torch.cat([*parts, states[:, :, num_placed:]], 2)


@contextmanager
def running(row: Row) -> Iterator[None]:
    """Say what the forward pass in this block runs over."""
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def current_row() -> Row:
    """Return what the forward pass that is running runs over."""
    return _row.get()
