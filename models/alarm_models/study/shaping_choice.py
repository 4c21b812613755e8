"""Compares the shapings of an aspect, and recommends the one that depends least on length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from alarm_models.combination.all_rules import Shaping
from alarm_models.combination.rewards import AspectRule
from alarm_models.combination.token_alignment import whitespace_tokens
from alarm_models.study.addition import correlation
from alarm_models.types import Score

__all__ = ["ShapingChoice", "ShapingFit", "shaping_choice"]

#: The shapings to compare with the recipe's.
_CANDIDATES = (Shaping.CENTRED, Shaping.MEAN, Shaping.PER_LENGTH)

#: Minimum share of pairs of completions that a recommended shaping orders as the aspect does.
_MIN_RANKING = 0.95

#: Minimum decrease of the correlation for which another shaping is recommended.
_MIN_GAIN = 0.05

#: Minimum number of completions for a recommendation.
_MIN_COMPLETIONS = 10

#: Decimal places to which rewards are compared, because sums may differ in the last bits.
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ShapingFit:
    """How an aspect's rewards under a shaping depend on length, and how they rank completions.

    ``with_segments`` and ``with_words`` are Pearson's r of the reward with the number of segments
    and of words, NaN where either is constant. ``ranking`` is the share of pairs of completions
    that the reward orders as the mean of their unshaped values does. Equal rewards count as half;
    pairs with equal values are left out.
    """

    shaping: Shaping
    with_segments: float
    with_words: float
    ranking: float

    @property
    def with_length(self) -> float:
        """The larger absolute value of the two correlations; NaN counts as 0."""
        return float(np.nan_to_num(np.abs([self.with_segments, self.with_words])).max())

    @property
    def keeps_ranking(self) -> bool:
        """Whether enough pairs are ordered as the aspect orders them."""
        return self.ranking >= _MIN_RANKING


@dataclass(frozen=True, slots=True)
class ShapingChoice:
    """A comparison of shapings of an aspect.

    ``current`` is the recipe's shaping; ``recommended`` is None if no shaping can be recommended.
    """

    current: Shaping
    recommended: Shaping | None
    fits: Sequence[ShapingFit]
    num_completions: int

    def explained(self) -> str:
        """Describe the recommendation, or why there is none, in a sentence."""
        by_shaping = {fit.shaping: fit for fit in self.fits}
        before = by_shaping[self.current]
        if self.num_completions < _MIN_COMPLETIONS:
            return f"{self.num_completions} completions are too few to compare shapings"
        if all(math.isnan(fit.ranking) for fit in self.fits):
            return "all completions have the same mean value, so that shapings cannot be compared"
        if self.recommended is None:
            return (
                f"no shaping orders {_MIN_RANKING:.0%} of the pairs of completions as the aspect "
                "does"
            )
        if self.recommended is self.current:
            return (
                f'keep shaping = "{self.current}": its largest correlation with length is '
                f"{before.with_length:.2f}, and no other that keeps the ranking lowers it by "
                f"{_MIN_GAIN}"
            )
        after = by_shaping[self.recommended]
        return (
            f'set shaping = "{self.recommended}": its largest correlation with length is '
            f"{after.with_length:.2f}, instead of {before.with_length:.2f} with {self.current}; it "
            f"orders {after.ranking:.0%} of the pairs of completions as the aspect does"
        )


def shaping_choice(
    scores: Sequence[Score], texts: Sequence[str], rule: AspectRule, weight: float
) -> ShapingChoice:
    """Compare the rule's shaping with others; scores and texts are ``[completions]``.

    Of the shapings that keep the ranking, the one that correlates least with length is recommended,
    but another than the rule's only if it lowers the correlation by a minimum.
    """
    tokens = [whitespace_tokens(text) for text in texts]
    num_words = [len(one) for one in tokens]
    fits: list[ShapingFit] = []
    for shaping in dict.fromkeys((rule.shaping, *_CANDIDATES)):
        shaped = replace(rule, shaping=shaping)
        values = [shaped.values(one, own) for one, own in zip(scores, tokens, strict=True)]
        added = [weight * sum(one.rewards) for one in values]
        own_means = [weight * float(np.mean(one.raw)) if len(one.raw) else np.nan for one in values]
        num_segments = [len(one.raw) for one in values]
        fits.append(
            ShapingFit(
                shaping,
                correlation(added, num_segments),
                correlation(added, num_words),
                _ranking(added, own_means),
            )
        )
    return ShapingChoice(rule.shaping, _recommended(fits, len(scores)), fits, len(scores))


def _recommended(fits: Sequence[ShapingFit], num_completions: int) -> Shaping | None:
    """Choose a shaping; the first fit is that of the recipe's."""
    able = [fit for fit in fits if fit.keeps_ranking]
    if not able or num_completions < _MIN_COMPLETIONS:
        return None
    best = min(able, key=lambda fit: fit.with_length)
    current = fits[0]
    if current.keeps_ranking and current.with_length - best.with_length < _MIN_GAIN:
        return current.shaping
    return best.shaping


def _ranking(rewards: ArrayLike, values: ArrayLike) -> float:
    """Return the share of pairs with different values that the rewards order as the values do."""
    reward, value = (np.round(np.asarray(given, float), _DIGITS) for given in (rewards, values))
    known = ~(np.isnan(reward) | np.isnan(value))
    reward, value = reward[known], value[known]
    num_pairs, in_order = 0, 0.0
    for at in range(len(reward) - 1):  # row by row: memory is linear in the completions
        wanted = np.sign(value[at + 1 :] - value[at])
        found = np.sign(reward[at + 1 :] - reward[at])
        differ = wanted != 0
        num_pairs += int(differ.sum())
        in_order += float(((found == wanted) + 0.5 * (found == 0))[differ].sum())
    return in_order / num_pairs if num_pairs else float("nan")
