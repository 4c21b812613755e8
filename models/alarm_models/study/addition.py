"""Measures what an aspect adds to the rewards of admitted completions; detects length bonuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alarm_models.combination.all_rules import SHAPINGS
from alarm_models.combination.rewards import AspectRule
from alarm_models.combination.token_alignment import whitespace_tokens
from alarm_models.types import Score

__all__ = ["Addition", "addition"]

#: At or above these values, the contribution of an aspect is reported as a length bonus.
_MOSTLY_UNEARNED, _FOLLOWS_LENGTH = 0.5, 0.8


@dataclass(frozen=True, slots=True)
class Addition:
    """What an aspect adds, weighted and shaped, to the rewards of completions.

    ``right`` and ``wrong`` are the reward of one segment, None where completions are judged whole
    or the shaping divides by their number of segments or tokens, and then so is ``unearned``;
    ``unearned`` is the share that would remain if every segment were wrong, 0 where a wrong one
    earns nothing. The correlations are Pearson's over completions, between what is added and the
    number of segments (of words, where completions are judged whole), and between what is added and
    the aspect's score; NaN where either is constant.
    """

    mean: float
    std: float
    num_completions: int
    right: float | None
    wrong: float | None
    mean_segments: float | None
    unearned: float | None
    with_length: float
    with_score: float

    @property
    def is_length_bonus(self) -> bool:
        """Whether most of the addition is for wrong segments, or it correlates with length."""
        return (self.unearned or 0.0) >= _MOSTLY_UNEARNED or self.with_length >= _FOLLOWS_LENGTH

    def explained(self) -> str:
        """Describe the addition in a sentence."""
        if self.right is None or self.wrong is None:
            units = "words" if self.mean_segments is None else "segments"
            return (
                f"adds {self.mean:+.3f} per completion; the correlation is "
                f"{_r(self.with_score)} with the "
                f"aspect's score and {_r(self.with_length)} with the number of {units}"
            )
        summary = (
            f"a right segment adds {self.right:+.3f} and a wrong one {self.wrong:+.3f}; "
            f"a completion with {self.mean_segments:.1f} segments gets {self.mean:+.3f}"
        )
        if not self.is_length_bonus:
            return f"{summary}; the correlation with their number is {_r(self.with_length)}"
        return (
            f"{summary}, and {self.unearned:.0%} of that if all were wrong: a bonus for more "
            f"segments (r = {_r(self.with_length)}), not for right ones (r = {_r(self.with_score)})"
        )


def _r(value: float) -> str:
    """Format a correlation; constants have none."""
    return "not defined" if math.isnan(value) else f"{value:.2f}"


def addition(
    scores: Sequence[Score], texts: Sequence[str], rule: AspectRule, weight: float
) -> Addition:
    """Measure what an aspect adds to completions with these scores; both lists ``[completions]``.

    Nothing is added to a completion without segments or without a score.
    """
    tokens = [whitespace_tokens(text) for text in texts]
    values = [rule.values(one, own).rewards for one, own in zip(scores, tokens, strict=True)]
    added = np.array([weight * sum(one) for one in values])
    own = np.array([np.nan if one.value is None else one.value for one in scores], dtype=float)
    by_segments = any(one.segments is not None for one in scores)
    right = wrong = unearned = None
    lengths = np.array([len(one) for one in (values if by_segments else tokens)], dtype=float)
    if by_segments and not rule.shaping.divides:
        shape = SHAPINGS[rule.shaping]
        right, wrong = weight * shape(rule.positive), weight * shape(rule.negative)
        total = float(added.sum())
        unearned = max(wrong, 0.0) * float(lengths.sum()) / total if total > 0 else 0.0
    return Addition(
        mean=_mean(added),
        std=float(np.std(added)) if len(added) else math.nan,
        num_completions=len(scores),
        right=right,
        wrong=wrong,
        mean_segments=_mean(lengths) if by_segments else None,
        unearned=unearned,
        with_length=correlation(added, lengths),
        with_score=correlation(added, own),
    )


def correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Return Pearson's r, ignoring pairs with NaN; NaN if either is constant."""
    one, other = np.asarray(first, float), np.asarray(second, float)
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
