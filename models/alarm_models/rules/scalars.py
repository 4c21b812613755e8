"""Rules that make one number of all scores; the last token has it."""

from __future__ import annotations

import math

from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy
from alarm_models.rules.parts import Parts, on_last_token
from alarm_models.shaping import sigmoid

__all__ = ["log_sigmoid", "minimum", "product"]


def product(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``s(z)^W * prod_k v_k^w_k``, where ``v_k`` is an aspect's shaped value.

    All must be good for the whole to be: an aspect pays only as far as the outcome is right, the
    multiplicative form of "explicit dependency" (arXiv 2511.09158). Raises `SampleError` for a
    negative value, and for a zero with a negative weight.
    """
    value = sigmoid(parts.z) ** hierarchy.holistic_weight
    for weight, part in parts.weighted(hierarchy):
        if part.value is None:
            continue
        if part.value < 0 or (part.value == 0 and weight < 0):
            raise SampleError(
                "non_finite",
                f"rule `product` cannot raise {part.value:g} to the weight {weight:g}: give the "
                'aspect shaping "sigmoid", or constants that keep it positive',
            )
        value *= part.value**weight
    return on_last_token(value, parts.num_tokens)


def minimum(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``min(W*z, w_1*v_1, ...)``, the pessimist's reward.

    Source: worst-case optimisation over reward models (Coste et al. 2023, arXiv 2310.02743), which
    takes all to be on one scale: aspects then want shaping "none", and constants that make it so.
    """
    values = [
        weight * part.value for weight, part in parts.weighted(hierarchy) if part.value is not None
    ]
    return on_last_token(min([hierarchy.holistic_weight * parts.z, *values]), parts.num_tokens)


def log_sigmoid(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``W*log s(z) + sum_k w_k*log s(level_k)``.

    The log-odds that all are above their means together, so that what is bad weighs more than what
    is good; ``z`` and levels are centred by their ``mean``. Source: Wang et al. 2024 (ICML, arXiv
    2402.00742), where the mean is a reference's score.
    """
    value = hierarchy.holistic_weight * _log_sigmoid(parts.z)
    for weight, part in parts.weighted(hierarchy):
        if part.level is not None:
            value += weight * _log_sigmoid(part.level)
    return on_last_token(value, parts.num_tokens)


def _log_sigmoid(value: float) -> float:
    return min(value, 0.0) - math.log1p(math.exp(-abs(value)))
