"""Rules that add up holistic reward and aspects, on the tokens where these stand."""

from __future__ import annotations

from collections.abc import Collection

from alarm_models.errors import SampleError
from alarm_models.hierarchy import Hierarchy, combine, is_admitted
from alarm_models.rules.parts import Parts, on_last_token
from alarm_models.shaping import sigmoid

__all__ = ["cascade", "par", "soft_gate", "sum_counted", "veto"]


def sum_counted(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + sum_k w_k*a_k[t]``, or the part of it that the rule counts.

    Lai et al. 2024 (arXiv 2403.06754), Figure 1, and the three baselines beside it.
    """
    return _sum(parts, hierarchy, parts.z, parts.aspects)


def soft_gate(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``W*z*1[t = last] + s((z - threshold)/temperature) * sum_k w_k*a_k[t]``.

    The paper's gate made continuous, so that no reward jumps at the threshold: half of the aspects
    counts there, and a temperature towards 0 gives `hierarchical` back. Our own.
    """
    gate = sigmoid((parts.z - hierarchy.threshold) / hierarchy.temperature)
    return _sum(parts, hierarchy, parts.z, parts.aspects, scale=gate)


def cascade(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return the sum of what stands before the first closed gate, and of that gate itself.

    ``R = sum_k m_k*w_k*a_k``, where ``m_k`` is 1 if every aspect of a higher priority reaches its
    minimum. The holistic score comes first, its minimum is the threshold; then the aspects of
    ``order``; then all others together. Source: the gates of G-RA (Sun et al., August 2025).
    """
    counted: set[str] = set()
    is_open = is_admitted(parts.z, hierarchy)
    for name in hierarchy.order:
        if is_open:
            counted.add(name)
            is_open = parts.passes(name, hierarchy)
    if is_open:
        counted.update(parts.aspects)
    return _sum(parts, hierarchy, parts.z, counted)


def veto(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``floor`` on the last token if any aspect misses its minimum, the weighted sum else.

    Source: the veto of critical rubrics in Rubicon (Huang et al. 2025, arXiv 2508.12790).
    """
    if all(parts.passes(name, hierarchy) for name in hierarchy.minimums):
        return sum_counted(parts, hierarchy)
    return on_last_token(hierarchy.floor, parts.num_tokens)


def par(parts: Parts, hierarchy: Hierarchy) -> tuple[float, ...]:
    """Return ``W*s(z - z_ref)*1[t = last] + sum_k w_k*a_k[t]``.

    ``z_ref`` is the score of a reference completion of the same prompt, so that the reward is
    bounded, and a half where the completion is as good as the reference. Source: preference as
    reward, PAR (Fu et al. 2025, arXiv 2502.18770). Raises `SampleError` without a reference.
    """
    if parts.reference_z is None:
        raise SampleError(
            "invalid_sample",
            "rule `par` compares with a reference: send its text in the sample's "
            "`fields.reference`",
        )
    return _sum(parts, hierarchy, sigmoid(parts.z - parts.reference_z), parts.aspects)


def _sum(
    parts: Parts, hierarchy: Hierarchy, z: float, names: Collection[str], scale: float = 1.0
) -> tuple[float, ...]:
    counted = {
        name: [scale * reward for reward in part.rewards]
        for name, part in parts.aspects.items()
        if name in names and hierarchy.weights[name] != 0
    }
    return combine(z, counted, hierarchy, parts.num_tokens)
