"""The comparison of an aspect's shapings, against statistics computed here from the formulas."""

import math
import statistics
from itertools import combinations

import pytest
from tolerance import computed

from alarm_models.combination.all_rules import Shaping
from alarm_models.combination.rewards import AspectRule
from alarm_models.study.shaping_choice import ShapingChoice, ShapingFit, shaping_choice
from alarm_models.types import Score, SegmentScore, Span

#: Right segments, wrong segments and words of completions.
COUNTS = [
    (3, 0, 30), (1, 1, 25), (2, 3, 60), (4, 1, 48), (0, 2, 20), (5, 2, 90),
    (1, 0, 8), (2, 1, 33), (3, 4, 70), (1, 4, 55), (6, 0, 66), (0, 1, 12),
]  # fmt: skip


def rule(shaping: Shaping) -> AspectRule:
    return AspectRule(0.5, -0.5, 0, 1, 1, 0, shaping)


def choice(
    shaping: Shaping, counts: list[tuple[int, int, int]] = COUNTS, weight: float = 1.0
) -> ShapingChoice:
    def judged(num_right: int, num_wrong: int) -> Score:
        verdicts = [True] * num_right + [False] * num_wrong
        segments = tuple(SegmentScore(Span(0, 1), None, 1.0, one) for one in verdicts)
        return Score(num_right / len(verdicts), segments, 1, False)

    texts = ["word " * num_words for _, _, num_words in counts]
    scores = [judged(right, wrong) for right, wrong, _ in counts]
    return shaping_choice(scores, texts, rule(shaping), weight)


def expected_rewards(shaping: Shaping) -> list[float]:
    right, wrong = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))
    by_shaping = {
        Shaping.SIGMOID: lambda r, w, n: r * right + w * wrong,
        Shaping.NONE: lambda r, w, n: (r - w) / 2,
        Shaping.CENTRED: lambda r, w, n: r * (right - 0.5) + w * (wrong - 0.5),
        Shaping.MEAN: lambda r, w, n: (r * right + w * wrong) / (r + w),
        Shaping.PER_LENGTH: lambda r, w, n: (r * right + w * wrong) / n,
    }
    return [by_shaping[shaping](*each) for each in COUNTS]


@pytest.mark.parametrize("present", [Shaping.SIGMOID, Shaping.NONE])
def test_shaping_fits_are_those_of_the_formulas(present: Shaping) -> None:
    found = choice(present)
    assert [fit.shaping for fit in found.fits] == [
        present, Shaping.CENTRED, Shaping.MEAN, Shaping.PER_LENGTH
    ]  # fmt: skip
    shares = [right / (right + wrong) for right, wrong, _ in COUNTS]
    for fit in found.fits:
        rewards = expected_rewards(fit.shaping)
        segments = [right + wrong for right, wrong, _ in COUNTS]
        words = [num_words for _, _, num_words in COUNTS]
        assert fit.with_segments == computed(statistics.correlation(rewards, segments))
        assert fit.with_words == computed(statistics.correlation(rewards, words))
        pairs = [
            (rewards[i] - rewards[j]) * (shares[i] - shares[j])
            for i, j in combinations(range(len(COUNTS)), 2)
            if shares[i] != shares[j]
        ]
        in_order = sum(1.0 if one > 1e-12 else 0.5 if one > -1e-12 else 0.0 for one in pairs)
        assert fit.ranking == computed(in_order / len(pairs))


def test_shaping_with_the_smallest_correlation_that_keeps_the_ranking_is_recommended() -> None:
    found = choice(Shaping.SIGMOID)
    able = [fit for fit in found.fits if fit.ranking >= 0.95]
    smallest = min(able, key=lambda fit: max(abs(fit.with_segments), abs(fit.with_words)))
    assert found.recommended is smallest.shaping is Shaping.MEAN
    assert found.fits[0].with_length > 0.8
    assert 'set shaping = "mean"' in found.explained()


def test_shaping_that_nothing_improves_is_kept() -> None:
    found = choice(Shaping.MEAN)
    assert found.recommended is Shaping.MEAN
    assert found.explained().startswith('keep shaping = "mean"')


def test_shaping_that_another_hardly_improves_is_kept() -> None:
    counts = [
        (0, 3, 30), (2, 1, 40), (3, 0, 30), (3, 0, 50), (2, 2, 50), (1, 3, 20),
        (0, 4, 40), (2, 1, 30), (3, 0, 40), (2, 2, 30), (3, 1, 50), (0, 3, 30),
    ]  # fmt: skip
    found = choice(Shaping.CENTRED, counts)
    centred, mean, _ = found.fits
    assert mean.with_length < centred.with_length
    assert found.recommended is Shaping.CENTRED


def test_shapings_that_all_change_the_ranking_are_not_recommended() -> None:
    fits = [ShapingFit(one, 0.5, 0.5, ranking=0.9) for one in (Shaping.SIGMOID, Shaping.MEAN)]
    assert not fits[0].keeps_ranking
    found = ShapingChoice(Shaping.SIGMOID, None, fits, num_completions=12)
    assert found.explained().startswith("no shaping orders 95% of the pairs")


def test_negative_weight_mirrors_the_correlations_and_keeps_the_ranking() -> None:
    plain, mirrored = choice(Shaping.SIGMOID), choice(Shaping.SIGMOID, weight=-2)
    for one, other in zip(plain.fits, mirrored.fits, strict=True):
        assert other.with_segments == computed(-one.with_segments)
        assert other.ranking == computed(one.ranking)
    assert mirrored.recommended is Shaping.MEAN


def test_few_completions_or_equal_ones_recommend_nothing() -> None:
    few = choice(Shaping.SIGMOID, COUNTS[:9])
    assert few.recommended is None
    assert few.explained() == "9 completions are too few to compare shapings"
    equal = choice(Shaping.SIGMOID, [(1, 1, 10)] * 12)
    assert equal.recommended is None
    assert math.isnan(equal.fits[0].ranking)
    assert equal.explained().startswith("all completions have the same mean value")
