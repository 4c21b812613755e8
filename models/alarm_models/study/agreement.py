"""How far one reward agrees with another on pairs of completions, ties counted separately."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alarm_models.study.bootstrap import Estimate, Resampling, estimate, ratio
from alarm_models.study.pairs import Floats, Pairs, group_sums, signs

__all__ = ["Agreement", "agreement", "tau_b"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often a reward prefers the same completion as a reference; shares lie in [0, 1].

    ``num_pairs`` counts the pairs in which the reference has a preference, ``num_tied`` those of
    them that the reward ties, and ``num_against`` those in which the reward has the opposite
    preference.

    ``inconsistency`` is the paper's figure, ``num_against / num_pairs`` (Lai et al. 2024, Figures 3
    and 4; halfrot/ALaRM, ``eval_compare.py``). It counts ties as agreement: it equals ``untied * (1
    - tie_share)``, and a random reward gets ``by_chance``, half of the untied share. ``untied`` is
    the inconsistency over the pairs that neither ties, 0.5 by chance; ``tau_b`` is Kendall's tau-b
    over pairs within prompts, 0 by chance.
    """

    num_pairs: int
    num_tied: int
    num_against: int
    inconsistency: float
    tie_share: float
    by_chance: float
    untied: Estimate
    tau_b: Estimate


def agreement(
    reference: ArrayLike, judged: ArrayLike, pairs: Pairs, resampling: Resampling
) -> Agreement:
    """Compare a reward's preferences with a reference's; both ``[pairs]``, as `preferences` gives.

    Pairs in which either has no preference (NaN) are left out.
    """
    known = ~(np.isnan(np.asarray(reference, float)) | np.isnan(np.asarray(judged, float)))
    ours, theirs = (np.where(known, one, 0.0) for one in (judged, reference))
    product = ours * theirs
    against, decided = product < 0, product != 0
    num_pairs = int(np.count_nonzero(theirs))
    num_tied = int(np.count_nonzero((ours == 0) & (theirs != 0)))
    tie_share = _share(num_tied, num_pairs)
    untied = group_sums([against, decided], pairs)
    return Agreement(
        num_pairs=num_pairs,
        num_tied=num_tied,
        num_against=int(np.count_nonzero(against)),
        inconsistency=_share(int(np.count_nonzero(against)), num_pairs),
        tie_share=tie_share,
        by_chance=0.5 * (1 - tie_share),
        untied=estimate(untied, ratio, resampling),
        tau_b=estimate(
            group_sums([product, ours**2, theirs**2], pairs), _tau, resampling, untied[:, 1]
        ),
    )


def tau_b(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's tau-b of two rankings of the same items; NaN if one has only ties.

    Takes quadratic time and linear memory in the number of items.
    """
    one, other = np.asarray(first, float), np.asarray(second, float)
    totals = np.zeros(3)
    for index in range(len(one) - 1):
        a, b = (signs(values[index + 1 :], values[index]) for values in (one, other))
        totals += a @ b, a @ a, b @ b
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(_tau(totals))


def _tau(totals: Floats) -> Floats:
    """Return concordant minus discordant pairs, divided by the geometric mean of untied pairs."""
    return np.asarray(totals[..., 0] / np.sqrt(totals[..., 1] * totals[..., 2]))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
