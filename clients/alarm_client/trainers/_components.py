"""The components of rewards, by name, for the trainers' logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from alarm_client.types import Reward

# Rules that add weighted parts, and those that count aspects only above the threshold.
_SUMS = ("hierarchical", "weighted_sum", "holistic_only", "aspect_only")
_THRESHOLDS = ("hierarchical", "cascade")
_WITHOUT_HOLISTIC = ("aspect_only", "rubric")

# The components of every reward besides its aspects.
BASE = ("reward", "holistic", "admitted", "failed")


def components(reward: Reward, aspect_names: Sequence[str]) -> dict[str, float]:
    """One finite number or NaN per name: the base names, then the aspects in the given order.

    `holistic` is the normalized score, `admitted` and `failed` are 0 or 1, an aspect is its
    reward before weighting; NaN means not computed.
    """
    values = {
        "reward": _or_nan(reward.reward),
        "holistic": math.nan if reward.holistic is None else reward.holistic.normalized,
        "admitted": _or_nan(reward.admitted),
        "failed": float(reward.reward is None),
    }
    for name in aspect_names:
        aspect = reward.aspects.get(name)
        values[name] = math.nan if aspect is None else aspect.reward
    return values


def summands(reward: Reward, hierarchy: Mapping[str, Any]) -> dict[str, float]:
    """What the holistic score and each aspect contribute to a reward, by the rule and its weights.

    For rules that are not weighted sums: the normalized holistic score and each aspect's reward
    without its weight. An aspect that does not count contributes 0. Empty on failure.
    """
    if reward.reward is None or reward.holistic is None:
        return {}
    rule, weights = hierarchy.get("rule"), hierarchy.get("weights") or {}
    is_sum = rule in _SUMS
    counts = reward.admitted if rule in _THRESHOLDS else rule != "holistic_only"
    z = reward.holistic.normalized * (hierarchy.get("holistic_weight", 1.0) if is_sum else 1.0)
    contributions = {"holistic": 0.0 if rule in _WITHOUT_HOLISTIC else z}
    for name, aspect in reward.aspects.items():
        weight = weights.get(name, 1.0) if is_sum else 1.0
        contributions[name] = weight * aspect.reward if counts and aspect is not None else 0.0
    return contributions


def columns(rewards: Sequence[Reward], aspect_names: Sequence[str]) -> dict[str, list[float]]:
    """The components of samples by name: one list per name, one value per sample."""
    rows = [components(reward, aspect_names) for reward in rewards]
    return {name: [row[name] for row in rows] for name in (*BASE, *aspect_names)}


def means(parts: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each column, ignoring NaN; NaN if a column has nothing else."""
    return {name: _mean(values) for name, values in parts.items()}


def part_of(reward: Reward, part: str) -> float | None:
    """The reward, its normalized holistic score, or the reward of an aspect, by name.

    None if not computed; ValueError if the recipe has no such aspect.
    """
    if part == "reward":
        return reward.reward
    if part == "holistic":
        return None if reward.holistic is None else reward.holistic.normalized
    if part not in reward.aspects:
        raise ValueError(f"the recipe has no aspect {part!r}; it has {sorted(reward.aspects)}")
    aspect = reward.aspects[part]
    return None if aspect is None else aspect.reward


class AspectNames:
    """The aspects to log: those that the user named, else all seen in rewards so far."""

    def __init__(self, named: Iterable[str]) -> None:
        self._names = tuple(named)
        self._is_fixed = bool(self._names)

    def update(self, rewards: Iterable[Reward]) -> tuple[str, ...]:
        """Add the names of these rewards; return all, sorted so that processes agree."""
        if not self._is_fixed:
            names = {name for reward in rewards for name in reward.aspects}
            self._names = tuple(sorted(names | set(self._names)))
        return self._names


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
