"""Pads token rewards to rows of equal width."""

from __future__ import annotations

from collections.abc import Sequence

Row = Sequence[float]


def left_aligned(rows: Sequence[Row], width: int | None = None) -> list[list[float]]:
    """Rows padded with zeros on the right (verl, trlx, FineGrainedRLHF)."""
    return starting_at(rows, [0] * len(rows), _width(rows) if width is None else width)


def right_aligned(rows: Sequence[Row], width: int | None = None) -> list[list[float]]:
    """Rows padded with zeros on the left (policies with left padding)."""
    width = _width(rows) if width is None else width
    return starting_at(rows, [width - len(row) for row in rows], width)


def starting_at(rows: Sequence[Row], starts: Sequence[int], width: int) -> list[list[float]]:
    """Each row at its own start column, zeros around it; ValueError if one does not fit."""
    placed = []
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        if start < 0 or start + len(row) > width:
            raise ValueError(
                f"sample {index}: {len(row)} token rewards from column {start} on "
                f"do not fit a width of {width}"
            )
        placed.append([0.0] * start + [*row] + [0.0] * (width - start - len(row)))
    return placed


def at_last_token(value: float, num_tokens: int) -> list[float]:
    """The value on the last of `num_tokens` tokens, zeros before it."""
    return [0.0] * (num_tokens - 1) + [value] if num_tokens else []


def _width(rows: Sequence[Row]) -> int:
    return max((len(row) for row in rows), default=0)
