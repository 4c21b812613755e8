"""Who meets whom, and what comparisons say of each: win rates, Bradley-Terry, sorting."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from alarm_models.cancellation import gather_or_cancel

__all__ = [
    "Comparison",
    "bradley_terry",
    "circular_pairs",
    "every_pair",
    "rank_shares",
    "ranked",
    "win_rates",
]

#: Log strengths are computed to this precision, which takes a dozen rounds.
_TOLERANCE = 1e-12
_MAX_ROUNDS = 200

#: Shares that differ by less are a tie: each is a mean of the judge's answers.
_TIE = 1e-9

Floats = NDArray[np.float64]


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


def rank_shares(
    num_members: int, order: Sequence[int], comparisons: Sequence[Comparison]
) -> list[float | None]:
    """Return the share of the others that rank below each member; None without comparisons.

    ``order`` is from best to worst, as `ranked` returns it, so neighbors were compared. Those that
    tied, or whose comparison is missing, share their ranks: each counts the others as half.
    """
    shares = {(one.first, one.second): one.share for one in comparisons}
    compared = {member for pair in shares for member in pair}

    def tie(one: int, other: int) -> bool:
        share = shares.get((one, other), shares.get((other, one), 0.5))
        return abs(share - 0.5) < _TIE

    runs: list[list[int]] = []
    for at, member in enumerate(order):
        if at and tie(order[at - 1], member):
            runs[-1].append(member)
        else:
            runs.append([member])
    ranked_shares: list[float | None] = [None] * num_members
    num_below = len(compared)
    for run in runs:
        members = [member for member in run if member in compared]
        num_below -= len(members)
        for member in members:
            ranked_shares[member] = (num_below + (len(members) - 1) / 2) / (len(compared) - 1)
    return ranked_shares


def bradley_terry(
    num_members: int, comparisons: Sequence[Comparison], prior: float
) -> list[float | None]:
    """Return each member's log strength; None for one without comparisons.

    Member i beats j with probability ``p_i / (p_i + p_j)``. ``prior`` ties with a member of
    strength 1 are added to each, without which one that wins every comparison would have no finite
    strength. The likelihood is concave in ``log p``, and its maximum is found by Newton's method.
    """
    wins = np.zeros((num_members, num_members))
    for one in comparisons:
        wins[one.first, one.second] += one.share
        wins[one.second, one.first] += 1 - one.share
    games = wins + wins.T
    logs = np.zeros(num_members)
    likelihood = _log_likelihood(logs, wins, prior)
    for _ in range(_MAX_ROUNDS):
        step = _newton_step(logs, wins, games, prior)
        while np.abs(step).max() > _TOLERANCE:
            moved = _log_likelihood(logs + step, wins, prior)
            if moved >= likelihood:
                break
            step /= 2
        else:
            break
        logs, likelihood = logs + step, moved
    return [float(log) if own.any() else None for log, own in zip(logs, games, strict=True)]


def _log_likelihood(logs: Floats, wins: Floats, prior: float) -> float:
    """Return the log likelihood of comparisons and of the ties with a member of strength 1."""
    own = (wins * np.logaddexp(0, logs[None, :] - logs[:, None])).sum()
    ties = prior / 2 * (np.logaddexp(0, logs) + np.logaddexp(0, -logs)).sum()
    return -float(own + ties)


def _newton_step(logs: Floats, wins: Floats, games: Floats, prior: float) -> Floats:
    """Return the step to the maximum of the likelihood's quadratic approximation."""
    gaps = logs[:, None] - logs[None, :]
    gradient = (wins - games * _logistic(gaps)).sum(axis=1) + prior * (0.5 - _logistic(logs))
    information = games * _logistic(gaps) * _logistic(-gaps)
    own = information.sum(axis=1) + prior * _logistic(logs) * _logistic(-logs)
    # The ridge keeps the system solvable where strengths are so far apart that terms vanish.
    hessian = np.diag(own + _TOLERANCE * max(own.max(), _TOLERANCE)) - information
    return np.linalg.solve(hessian, gradient)


def _logistic(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))


async def ranked(num_members: int, share_of: Callable[[int, int], Awaitable[float]]) -> list[int]:
    """Return the members from best to worst by a merge sort, with at most n log2 n comparisons.

    ``share_of`` compares two members; after a tie the one of lower index is first.
    """

    async def sort(members: Sequence[int]) -> list[int]:
        if len(members) < 2:
            return list(members)
        middle = len(members) // 2
        left: list[int]
        right: list[int]
        left, right = await gather_or_cancel(sort(members[:middle]), sort(members[middle:]))
        merged: list[int] = []
        while left and right:
            is_left = await share_of(left[0], right[0]) >= 0.5
            merged.append((left if is_left else right).pop(0))
        return merged + left + right

    return await sort(range(num_members))
