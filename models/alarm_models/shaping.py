"""How an aspect's value is made positive before it joins a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum

__all__ = ["SHAPINGS", "Shaping", "sigmoid"]


class Shaping(StrEnum):
    """The shapings that a recipe may name."""

    SIGMOID = "sigmoid"
    NONE = "none"


def sigmoid(value: float) -> float:
    """Return ``1 / (1 + exp(-value))`` without overflow (the paper's shaping)."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)


def _unchanged(value: float) -> float:
    return value


SHAPINGS: Mapping[Shaping, Callable[[float], float]] = {
    Shaping.SIGMOID: sigmoid,
    Shaping.NONE: _unchanged,
}
