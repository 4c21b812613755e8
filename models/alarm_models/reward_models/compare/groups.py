"""Scores of the completions of a group, from a judge's answers about pairs or lists of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from alarm_models.errors import SampleError, quoted
from alarm_models.preprocessing.templates import TextTemplate
from alarm_models.recipe.specs import MARK, CompareSpec
from alarm_models.reward_models.base import Outcome, gather_limited
from alarm_models.reward_models.compare.estimation import (
    Comparison,
    bradley_terry,
    circular_pairs,
    every_pair,
    rank_shares,
    ranked,
    win_rates,
)
from alarm_models.types import Sample, Score

__all__ = ["Judge", "compare_groups", "compare_with_references"]

#: Two texts, by their indices, in the order in which they are shown.
Pair = tuple[int, int]

_Item = TypeVar("_Item")

_TOO_LONG = "too_long"

_LONE = (
    "kind compare needs other samples of the prompt: send all samples of a group in one request, "
    "or each with `group` and `group_size`"
)


class Judge(Protocol):
    """Compares texts that answer one prompt, which are identified by their indices."""

    async def shares(self, orders: Sequence[Pair]) -> list[float | SampleError]:
        """Return the share in [0, 1] that the first text of each pair wins, or an error."""

    async def list_scores(
        self, orders: Sequence[Sequence[int]]
    ) -> list[Sequence[float] | SampleError]:
        """Return the scores of all texts for each order, in that order, or an error."""

    def scored(self, text: int, value: float) -> Score:
        """Return a text's score, with the tokens or requests that no score reports yet."""


#: Creates a judge for texts that answer a sample's prompt; raises `SampleError`.
JudgeOf = Callable[[Sample, Sequence[str]], Judge]


async def compare_groups(
    spec: CompareSpec, samples: Sequence[Sample], judge_of: JudgeOf, at_once: int
) -> list[Outcome]:
    """Compare the samples of each group; at most ``at_once`` groups at a time."""
    groups: dict[str | None, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(index)

    async def compare(indices: Sequence[int]) -> list[Outcome]:
        return await _compare_group(spec, [samples[index] for index in indices], judge_of)

    found = await gather_limited(compare, list(groups.values()), at_once)
    by_index: dict[int, Outcome] = {}
    for indices, outcomes in zip(groups.values(), found, strict=True):
        by_index |= zip(indices, outcomes, strict=True)
    return [by_index[index] for index in range(len(samples))]


async def compare_with_references(
    spec: CompareSpec,
    samples: Sequence[Sample],
    reference_of: Callable[[Sample], str],
    judge_of: JudgeOf,
    at_once: int,
) -> list[Outcome]:
    """Compare each sample with its reference; at most ``at_once`` samples at a time."""

    async def compare(sample: Sample) -> Outcome:
        try:
            texts = [sample.completion_text, reference_of(sample)]
            comparison = _GroupComparison(spec, texts, judge_of(sample, texts))
            await comparison.compare_pairs([(0, 1)])
        except SampleError as error:
            return error.with_traceback(None)
        problem = comparison.problems.get(0) or comparison.unanswered.get(0)
        return problem or comparison.judge.scored(0, comparison.results[0].share)

    return await gather_limited(compare, samples, at_once)


async def _compare_group(
    spec: CompareSpec, samples: Sequence[Sample], judge_of: JudgeOf
) -> list[Outcome]:
    fault = _fault(spec, samples)
    if fault is not None:
        return [fault] * len(samples)
    # Sorted, so that questions and scores do not depend on the order of the samples.
    texts = sorted({sample.completion_text for sample in samples})
    try:
        judge = judge_of(samples[0], texts)
        scores = await _scores(_GroupComparison(spec, texts, judge))
    except SampleError as error:
        return [error.with_traceback(None)] * len(samples)
    by_text = dict(zip(texts, enumerate(scores), strict=True))
    outcomes: list[Outcome] = []
    for sample in samples:
        at, found = by_text[sample.completion_text]
        outcomes.append(found if isinstance(found, SampleError) else judge.scored(at, found))
    return outcomes


async def _scores(comparison: _GroupComparison) -> Sequence[float | SampleError]:
    """Return the score of each text; raise `SampleError` if all of them fail."""
    spec, num_texts = comparison.spec, comparison.num_texts
    if num_texts == 1:
        return [0.5 if spec.estimate == "win_rate" else 0.0]
    if spec.method == "list":
        return await comparison.list_scores()
    if spec.method == "sort":
        return comparison.estimates(await comparison.ranked())
    pairs = circular_pairs if spec.method == "circular" else every_pair
    await comparison.compare_pairs(pairs(num_texts))
    return comparison.estimates()


@dataclass(slots=True)
class _GroupComparison:
    """Compares texts that answer one prompt, and keeps the results."""

    spec: CompareSpec
    texts: Sequence[str]
    judge: Judge
    results: list[Comparison] = field(default_factory=list)
    #: The first error that a text has a part in: of two that are too long together, the longer one.
    problems: dict[int, SampleError] = field(default_factory=dict)
    #: The error of a text's first comparison without an answer.
    unanswered: dict[int, SampleError] = field(default_factory=dict)

    @property
    def num_texts(self) -> int:
        """The number of texts."""
        return len(self.texts)

    async def compare_pairs(self, pairs: Sequence[Pair]) -> None:
        """Compare pairs of texts, all at once."""
        orders = [order for pair in pairs for order in self._orders(pair)]
        shares = iter(await self.judge.shares(orders))
        for pair in pairs:
            self._record(pair, [next(shares) for _ in self._orders(pair)])

    async def ranked(self) -> list[int]:
        """Sort the texts from best to worst; a skipped comparison counts as a tie."""

        async def share_of(first: int, second: int) -> float:
            pair = (first, second)
            share = self._record(pair, await self.judge.shares(self._orders(pair)))
            if not isinstance(share, SampleError):
                return share
            if share.code == _TOO_LONG:  # ranked last, so that the others are compared
                sizes = (self._size(first), self._size(second))
                return (1 + (sizes[0] < sizes[1]) - (sizes[0] > sizes[1])) / 2
            if self.spec.on_failure == "fail":
                raise share
            return 0.5

        return await ranked(self.num_texts, share_of)

    async def list_scores(self) -> list[float]:
        """Return each text's mean score over questions about all texts."""
        places = list(range(self.num_texts))
        orders = [places, places[::-1]] if self.spec.both_orders else [places]
        found = [_required(one) for one in await self.judge.list_scores(orders)]
        by_order = [
            dict(zip(order, one, strict=True)) for order, one in zip(orders, found, strict=True)
        ]
        return [math.fsum(one[at] for one in by_order) / len(by_order) for at in places]

    def estimates(self, order: Sequence[int] | None = None) -> list[float | SampleError]:
        """Estimate each text's score from the results, and from its rank if there is an order."""
        # Sorted, because the order in which comparisons end must not change the last digits.
        results = sorted(self.results, key=lambda one: (one.first, one.second))
        if self.spec.estimate == "bradley_terry":
            values = bradley_terry(self.num_texts, results, self.spec.prior)
        elif order is None:
            values = win_rates(self.num_texts, results)
        else:
            values = rank_shares(self.num_texts, order, results)
        compared = {at for one in results for at in (one.first, one.second)}
        scores: list[float | SampleError] = []
        for at, value in enumerate(values):
            problem = self.problems.get(at) if self.spec.on_failure == "fail" else None
            if problem is not None:
                scores.append(problem)
            elif at in compared and value is not None:
                scores.append(value)
            else:
                scores.append(self.unanswered[at])
        return scores

    def _size(self, at: int) -> int:
        """Return the bytes of a text, which its tokens follow more closely than its characters."""
        return len(self.texts[at].encode())

    def _orders(self, pair: Pair) -> list[Pair]:
        first, second = pair
        return [pair, (second, first)] if self.spec.both_orders else [pair]

    def _record(self, pair: Pair, shares: Sequence[float | SampleError]) -> float | SampleError:
        """Record the shares of a pair's first text in each order; return their mean or an error."""
        problem = next((one for one in shares if isinstance(one, SampleError)), None)
        if problem is not None:
            most = max(map(self._size, pair))
            for at in pair:
                self.unanswered.setdefault(at, problem)
                if problem.code != _TOO_LONG or self._size(at) == most:
                    self.problems.setdefault(at, problem)
            return problem
        won = [one if at == 0 else 1 - one for at, one in enumerate(_numbers(shares))]
        share = math.fsum(won) / len(won)
        self.results.append(Comparison(*pair, share))
        return share


def _numbers(shares: Iterable[float | SampleError]) -> list[float]:
    return [one for one in shares if not isinstance(one, SampleError)]


def _required(found: _Item | SampleError) -> _Item:
    if isinstance(found, SampleError):
        raise found
    return found


def _fault(spec: CompareSpec, samples: Sequence[Sample]) -> SampleError | None:
    """Return why samples cannot be compared with each other, or None."""
    group = samples[0].group
    if group is None or len(samples) < 2:
        return SampleError("invalid_sample", _LONE)
    if any(sample.prompt != samples[0].prompt for sample in samples):
        return SampleError(
            "invalid_sample",
            f"samples of group {quoted(group)} have different prompts: only completions of one "
            "prompt can be compared",
        )
    for name in _field_names(spec):
        if any(sample.fields.get(name) != samples[0].fields.get(name) for sample in samples):
            return SampleError(
                "invalid_sample",
                f"samples of group {quoted(group)} have different fields.{name}, which the "
                "question names: send the same with all of them",
            )
    return None


def _field_names(spec: CompareSpec) -> list[str]:
    """Return the fields of samples that the recipe's questions name."""
    names = {name for template in spec.templates for name in TextTemplate(template).names}
    return sorted(names - {"prompt", "completion", "other", MARK})
