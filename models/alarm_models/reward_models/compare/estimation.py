"""Who meets whom, and what comparisons say of each: win rates, Bradley-Terry, sorting."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

__all__ = [
    "Comparison",
    "bradley_terry",
    "circular_pairs",
    "every_pair",
    "ranked",
    "win_rates",
]

#: Bradley-Terry strengths are computed to this relative precision, which takes a few dozen rounds.
_TOLERANCE = 1e-12
_MAX_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two members of a group and the share of the comparison that the first won, in [0, 1]."""

    first: int
    second: int
    share: float


def every_pair(num_members: int) -> list[tuple[int, int]]:
    """Return all pairs of members."""
    return list(combinations(range(num_members), 2))


def circular_pairs(num_members: int) -> list[tuple[int, int]]:
    """Return each member with the next; the last meets the first. Two members meet once."""
    if num_members < 3:
        return every_pair(num_members)
    return [(at, (at + 1) % num_members) for at in range(num_members)]


def win_rates(num_members: int, comparisons: Sequence[Comparison]) -> list[float | None]:
    """Return each member's mean share of its comparisons; None for one that has none."""
    shares: list[list[float]] = [[] for _ in range(num_members)]
    for one in comparisons:
        shares[one.first].append(one.share)
        shares[one.second].append(1 - one.share)
    return [math.fsum(own) / len(own) if own else None for own in shares]


def bradley_terry(
    num_members: int, comparisons: Sequence[Comparison], prior: float
) -> list[float | None]:
    """Return each member's log strength; None for one without comparisons.

    Member i beats j with probability ``p_i / (p_i + p_j)``. ``prior`` ties with a member of
    strength 1 are added to each, without which one that wins every comparison would have no finite
    strength. The maximum is found by minorization and maximization: Hunter, "MM algorithms for
    generalized Bradley-Terry models", Annals of Statistics 32 (2004).
    """
    wins = [prior / 2] * num_members
    opponents: list[list[int]] = [[] for _ in range(num_members)]
    for one in comparisons:
        wins[one.first] += one.share
        wins[one.second] += 1 - one.share
        opponents[one.first].append(one.second)
        opponents[one.second].append(one.first)
    strengths = [1.0] * num_members
    for _ in range(_MAX_ROUNDS):
        before = list(strengths)
        for at, own in enumerate(strengths):
            games = [1 / (own + strengths[other]) for other in opponents[at]]
            strengths[at] = wins[at] / (math.fsum(games) + prior / (own + 1))
        pairs = zip(before, strengths, strict=True)
        if all(abs(new - old) <= _TOLERANCE * old for old, new in pairs):
            break
    return [
        math.log(strength) if met else None
        for strength, met in zip(strengths, opponents, strict=True)
    ]


async def ranked(num_members: int, share_of: Callable[[int, int], Awaitable[float]]) -> list[int]:
    """Return the members from best to worst by a merge sort, with at most n log2 n comparisons.

    ``share_of`` compares two members; after a tie the one of lower index is first.
    """

    async def sort(members: Sequence[int]) -> list[int]:
        if len(members) < 2:
            return list(members)
        middle = len(members) // 2
        left, right = await asyncio.gather(sort(members[:middle]), sort(members[middle:]))
        merged: list[int] = []
        while left and right:
            is_left = await share_of(left[0], right[0]) >= 0.5
            merged.append((left if is_left else right).pop(0))
        return merged + left + right

    return await sort(range(num_members))
