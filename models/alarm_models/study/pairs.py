"""Pairs of completions of one prompt, and which of the two a reward prefers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alarm_models.combination.rule_registry import ROUNDING

__all__ = [
    "Floats",
    "Pairs",
    "group_sums",
    "pairs_between",
    "pairs_within",
    "preferences",
    "signs",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of completions by index, and the prompt of each: three arrays ``[pairs]``.

    Prompts are numbered from 0 to ``num_prompts - 1``; some may have no pair.
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    prompt: NDArray[np.intp]
    num_prompts: int

    def __len__(self) -> int:
        return len(self.first)


def pairs_within(prompts: Sequence[int]) -> Pairs:
    """Pair every completion with each later one of its prompt; ``prompts`` is ``[completions]``."""
    members = _members(prompts)
    return _pairs(
        ((one, other, prompt) for prompt, indices in members.items()
         for at, one in enumerate(indices) for other in indices[at + 1 :]),
        members,
    )  # fmt: skip


def pairs_between(
    prompts: Sequence[int], policies: Sequence[int], first: int, second: int
) -> Pairs:
    """Pair every completion of one policy with each of another's for the same prompt.

    ``prompts`` and ``policies`` are ``[completions]``; ``first`` and ``second`` name policies.
    """
    members = _members(prompts)
    return _pairs(
        ((one, other, prompt) for prompt, indices in members.items()
         for one in indices if policies[one] == first
         for other in indices if policies[other] == second),
        members,
    )  # fmt: skip


def preferences(values: ArrayLike, pairs: Pairs) -> Floats:
    """Return 1 where the first has the greater value, -1 the second, 0 for a tie: ``[pairs]``.

    A pair that lacks a value (NaN) has no preference: NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    return signs(array[pairs.first], array[pairs.second])


def signs(first: Floats, second: Floats) -> Floats:
    """Return the signs of differences; 0 where values differ by the rounding of a sum alone."""
    is_tie = np.isclose(first, second, rtol=ROUNDING, atol=1e-12)
    return np.where(is_tie, 0.0, np.sign(first - second))


def group_sums(columns: Sequence[ArrayLike], pairs: Pairs) -> Floats:
    """Add up columns ``[pairs]`` by prompt: ``[prompts, columns]``."""
    sums = [
        np.bincount(pairs.prompt, np.asarray(column, np.float64), pairs.num_prompts)
        for column in columns
    ]
    return np.stack(sums, axis=1)


def _members(prompts: Sequence[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        members.setdefault(int(prompt), []).append(index)
    return members


def _pairs(rows: Iterable[tuple[int, int, int]], members: dict[int, list[int]]) -> Pairs:
    table = np.array(list(rows), dtype=np.intp).reshape(-1, 3)
    return Pairs(table[:, 0], table[:, 1], table[:, 2], max(members, default=-1) + 1)
