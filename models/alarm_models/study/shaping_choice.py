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

#: The shapings that are compared with the recipe's.
_CANDIDATES = (Shaping.CENTRED, Shaping.MEAN, Shaping.PER_LENGTH)

#: The share of pairs of completions that a shaping must order as the aspect does.
_KEEPS_RANKING = 0.95

#: By how much another shaping must lower the correlation to be recommended.
_LEAST_GAIN = 0.05

#: The fewest completions that say something about a correlation.
_FEWEST = 10

#: Decimal places to which rewards are compared: sums in another order differ in the last bits.
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ShapingFit:
    """What a shaping makes of an aspect on completions.

    ``with_segments`` and ``with_words`` are Pearson's r of the shaped reward with the number of
    segments and of words, NaN where one of them is constant. ``ranking`` is the share of pairs of
    completions that the reward orders as the mean of their unshaped values does; equal rewards
    count a half, pairs whose values are equal do not count.
    """

    shaping: Shaping
    with_segments: float
    with_words: float
    ranking: float

    @property
    def with_length(self) -> float:
        """The larger of the two correlations without their signs; one that is NaN is 0."""
        return float(np.nan_to_num(np.abs([self.with_segments, self.with_words])).max())

    @property
    def keeps_ranking(self) -> bool:
        """Whether nearly all pairs are ordered as the aspect orders them."""
        return self.ranking >= _KEEPS_RANKING


@dataclass(frozen=True, slots=True)
class ShapingChoice:
    """The recipe's shaping of an aspect and others; ``recommended`` is None if none is."""

    present: Shaping
    recommended: Shaping | None
    fits: Sequence[ShapingFit]
    num_completions: int

    def explained(self) -> str:
        """Describe the recommendation in a sentence."""
        by_shaping = {fit.shaping: fit for fit in self.fits}
        before = by_shaping[self.present]
        if self.num_completions < _FEWEST:
            return f"{self.num_completions} completions are too few to compare shapings"
        if all(math.isnan(fit.ranking) for fit in self.fits):
            return "all completions have the same mean value, so that shapings cannot be compared"
        if self.recommended is None:
            return (
                f"no shaping orders {_KEEPS_RANKING:.0%} of the pairs of completions as the aspect "
                "does"
            )
        if self.recommended is self.present:
            return (
                f'keep shaping = "{self.present}": its largest correlation with length is '
                f"{before.with_length:.2f}, and no other lowers it by {_LEAST_GAIN} and keeps the "
                "ranking"
            )
        after = by_shaping[self.recommended]
        return (
            f'set shaping = "{self.recommended}": its largest correlation with length is '
            f"{after.with_length:.2f}, that of {self.present} {before.with_length:.2f}; it orders "
            f"{after.ranking:.0%} of the pairs of completions as the aspect does"
        )


def shaping_choice(
    scores: Sequence[Score], texts: Sequence[str], rule: AspectRule, weight: float
) -> ShapingChoice:
    """Compare the rule's shaping with others on completions; both lists ``[completions]``.

    Of those that keep the ranking, the one with the smallest correlation with length is
    recommended, the rule's own unless another is clearly smaller.
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
    """Choose among fits, of which the first is the recipe's."""
    able = [fit for fit in fits if fit.keeps_ranking]
    if not able or num_completions < _FEWEST:
        return None
    best = min(able, key=lambda fit: fit.with_length)
    present = fits[0]
    if present.keeps_ranking and present.with_length - best.with_length < _LEAST_GAIN:
        return present.shaping
    return best.shaping


def _ranking(rewards: ArrayLike, values: ArrayLike) -> float:
    """Return the share of pairs with different values that rewards order in the same way."""
    one, other = (np.round(np.asarray(given, float), _DIGITS) for given in (rewards, values))
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known], other[known]
    num_pairs, in_order = 0, 0.0
    for at in range(len(one) - 1):  # row by row, so that memory grows with the completions only
        wanted = np.sign(other[at + 1 :] - other[at])
        found = np.sign(one[at + 1 :] - one[at])
        differ = wanted != 0
        num_pairs += int(differ.sum())
        in_order += float(((found == wanted) + 0.5 * (found == 0))[differ].sum())
    return in_order / num_pairs if num_pairs else float("nan")
