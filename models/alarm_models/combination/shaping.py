"""Shapings: monotone functions that map an aspect's raw value to the value that is paid."""

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
    power = math.exp(value)
    return power / (1 + power)


def _identity(value: float) -> float:
    return value


SHAPINGS: Mapping[Shaping, Callable[[float], float]] = {
    Shaping.SIGMOID: sigmoid,
    Shaping.NONE: _identity,
}
