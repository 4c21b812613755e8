"""Kind `compare`: scores from comparisons of a group's completions by a judge."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from alarm_models.errors import SampleError, quoted
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.preprocessing.untrusted_text import neutralized
from alarm_models.recipe.specs import CompareSpec
from alarm_models.reward_models.base import HostModel, Outcome, gather_limited
from alarm_models.reward_models.compare.estimation import (
    Comparison,
    bradley_terry,
    circular_pairs,
    every_pair,
    ranked,
    win_rates,
)
from alarm_models.reward_models.compare.questions import (
    ListQuestion,
    PairQuestion,
    RankingQuestion,
)
from alarm_models.reward_models.judge_endpoint.client import JudgeEndpoint, JudgeReply
from alarm_models.reward_models.registry import host_kind
from alarm_models.types import JudgeTotals, JudgeUsage, Sample, Score

__all__ = ["CompareModel"]

_Read = TypeVar("_Read")

_LONE = (
    "kind compare needs other samples of the prompt: send all samples of a group in one request, "
    "or each with `group` and `group_size`"
)


@host_kind(CompareSpec)
class CompareModel(HostModel):
    """A judge behind a chat endpoint that compares the samples of each group.

    Samples with the same completion are compared once and have the same score. A sample that fails
    is not compared, and a sample without another to compare it with fails.
    """

    is_elsewhere = True

    def __init__(self, spec: CompareSpec, fields: Mapping[str, FieldPattern]) -> None:
        super().__init__("", spec.view_rules)
        self._spec = spec
        self._endpoint = JudgeEndpoint(spec.endpoint)
        self._question = TextTemplate(spec.question, fields=fields)
        self._reference = TextTemplate("{reference}", fields=fields)
        patterns = sorted((name, field.pattern) for name, field in fields.items())
        constants = spec.constants(frozenset({"endpoint"}))
        self._constants = f"{constants}|{spec.endpoint.scoring_constants()}|{patterns}"

    @property
    def fingerprint(self) -> str:
        """A digest of the recipe, the endpoint's address, and the model that it reported."""
        parts = f"{self._constants}|{self._endpoint.identity}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def judge_totals(self) -> JudgeTotals:
        """What the endpoint was asked since it was opened."""
        return self._endpoint.totals

    async def open(self) -> None:
        """Ask which model the endpoint serves; raise `CheckpointError`."""
        await self._endpoint.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Compare the samples of each group, or each sample with its reference."""
        return await self._score_shown(samples, self._compare)

    async def _compare(self, samples: Sequence[Sample]) -> list[Outcome]:
        limit = self._spec.endpoint.max_concurrent
        if self._spec.method == "reference":
            return await gather_limited(self._compare_with_reference, samples, limit)
        groups: dict[str | None, list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(sample.group, []).append(index)
        members = [[samples[index] for index in indices] for indices in groups.values()]
        found = await gather_limited(self._compare_group, members, limit)
        by_index: dict[int, Outcome] = {}
        for indices, outcomes in zip(groups.values(), found, strict=True):
            by_index |= zip(indices, outcomes, strict=True)
        return [by_index[index] for index in range(len(samples))]

    async def _compare_with_reference(self, sample: Sample) -> Outcome:
        try:
            reference = self._reference.render(sample).text
            contest = self._contest(sample, [sample.completion_text, reference])
            share = await contest.share(0, 1)
        except SampleError as error:
            return error.with_traceback(None)
        return _scored(share, contest.usage)

    async def _compare_group(self, samples: Sequence[Sample]) -> list[Outcome]:
        first = samples[0]
        fault = _fault(samples)
        if fault is not None:
            return [fault] * len(samples)
        # In an order that does not depend on that of the samples, as the questions do.
        texts = sorted({sample.completion_text for sample in samples})
        if len(texts) == 1:
            is_rate = self._spec.estimate == "win_rate"
            return [_scored(0.5 if is_rate else 0.0, JudgeUsage())] * len(samples)
        try:
            contest = self._contest(first, texts)
            by_text = dict(zip(texts, await self._scores(contest), strict=True))
        except SampleError as error:
            return [error.with_traceback(None)] * len(samples)
        outcomes: list[Outcome] = []
        usage = contest.usage
        for sample in samples:
            found = by_text[sample.completion_text]
            if isinstance(found, SampleError):
                outcomes.append(found)
                continue
            outcomes.append(_scored(found, usage))
            usage = JudgeUsage()  # counted once
        return outcomes

    def _contest(self, sample: Sample, texts: Sequence[str]) -> _Contest:
        question = neutralized(self._question.render(sample).text)
        return _Contest(self._spec, self._endpoint, sample, texts, question)

    async def _scores(self, contest: _Contest) -> list[float | SampleError]:
        """Return the score of each text; raise `SampleError` if all of them fail."""
        if self._spec.method == "list":
            return list(await contest.list_scores())
        if self._spec.method == "sort":
            order = await contest.ranked()
            if self._spec.estimate == "win_rate":
                num_others = len(order) - 1
                rates = {text: (num_others - at) / num_others for at, text in enumerate(order)}
                return [rates[at] for at in range(len(order))]
        else:
            is_circular = self._spec.method == "circular"
            pairs = (circular_pairs if is_circular else every_pair)(len(contest.texts))
            await contest.meet(pairs)
        return self._estimates(contest)

    def _estimates(self, contest: _Contest) -> list[float | SampleError]:
        num_texts = len(contest.texts)
        # They ended in any order, which must not change the last digits.
        comparisons = sorted(contest.comparisons, key=lambda one: (one.first, one.second))
        if self._spec.estimate == "win_rate":
            values = win_rates(num_texts, comparisons)
        else:
            values = bradley_terry(num_texts, comparisons, self._spec.prior)
        scores: list[float | SampleError] = []
        for at, value in enumerate(values):
            problem = contest.problems.get(at)
            if problem is not None and (value is None or self._spec.on_failure == "fail"):
                scores.append(problem)
            elif value is None:
                raise RuntimeError("a text without a comparison has a problem")
            else:
                scores.append(value)
        return scores


@dataclass(slots=True)
class _Contest:
    """The comparisons of some texts that answer one prompt, and what they cost."""

    spec: CompareSpec
    endpoint: JudgeEndpoint
    sample: Sample
    texts: Sequence[str]
    question: str
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    comparisons: list[Comparison] = field(default_factory=list)
    #: The first failed comparison of a text.
    problems: dict[int, SampleError] = field(default_factory=dict)

    async def meet(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Compare pairs of texts."""
        await gather_limited(self._meet, pairs, self.spec.endpoint.max_concurrent)

    async def ranked(self) -> list[int]:
        """Return the texts from best to worst; a failed comparison that is skipped is a tie."""

        async def share_of(first: int, second: int) -> float:
            share = await self._meet((first, second))
            if share is None and self.spec.on_failure == "fail":
                raise self.problems[first]
            return 0.5 if share is None else share

        return await ranked(len(self.texts), share_of)

    async def _meet(self, pair: tuple[int, int]) -> float | None:
        first, second = pair
        try:
            share = await self.share(first, second)
        except SampleError as error:
            for at in pair:
                self.problems.setdefault(at, error.with_traceback(None))
            return None
        self.comparisons.append(Comparison(first, second, share))
        return share

    async def share(self, first: int, second: int) -> float:
        """Return what the first of two texts wins; raise `SampleError`."""
        orders = [(first, second), (second, first)] if self.spec.both_orders else [(first, second)]
        shares = await gather_limited(self._shares, orders, len(orders))
        turned = [share if at == 0 else 1 - share for at, share in enumerate(shares)]
        return math.fsum(turned) / len(turned)

    async def _shares(self, order: tuple[int, int]) -> float:
        texts = [self.texts[at] for at in order]
        asked: PairQuestion | RankingQuestion
        if self.spec.format == "genrm":
            asked = RankingQuestion(self.sample, texts)
        else:
            asked = PairQuestion(self._prompt, texts, self.question)
        votes = await self._votes(asked, asked.share)
        return math.fsum(votes) / len(votes)

    async def list_scores(self) -> list[float]:
        """Return the score of each text, from questions about all of them."""
        places = list(range(len(self.texts)))
        orders = [places, places[::-1]] if self.spec.both_orders else [places]
        found = await gather_limited(self._list_scores, orders, len(orders))
        by_order = [
            dict(zip(order, one, strict=True)) for order, one in zip(orders, found, strict=True)
        ]
        return [math.fsum(one[at] for one in by_order) / len(by_order) for at in places]

    async def _list_scores(self, order: Sequence[int]) -> list[float]:
        asked = ListQuestion(self._prompt, [self.texts[at] for at in order], self.question)
        votes = await self._votes(asked, asked.scores)
        return [math.fsum(one) / len(votes) for one in zip(*votes, strict=True)]

    async def _votes(
        self,
        asked: PairQuestion | RankingQuestion | ListQuestion,
        read: Callable[[JudgeReply], _Read],
    ) -> list[_Read]:
        """Return the readable answers, which must be more than half; raise `SampleError`."""
        result = await self.endpoint.ask(asked.to_judge(self.spec.n))
        self.usage += result.usage
        votes: list[_Read] = []
        problem: SampleError | None = None
        for reply in result.replies:
            try:
                votes.append(read(reply))
            except SampleError as error:
                problem = problem or error
        if problem is not None and 2 * len(votes) <= len(result.replies):
            raise problem
        return votes

    @property
    def _prompt(self) -> str:
        prompt = self.sample.prompt
        if isinstance(prompt, str) or len(prompt) < 2:
            return self.sample.prompt_text
        return "\n\n".join(f"{one.role}: {one.text}" for one in prompt)


def _fault(samples: Sequence[Sample]) -> SampleError | None:
    group = samples[0].group
    if group is None or len(samples) < 2:
        return SampleError("invalid_sample", _LONE)
    if any(sample.prompt != samples[0].prompt for sample in samples):
        return SampleError(
            "invalid_sample",
            f"samples of group {quoted(group)} have different prompts: only completions of one "
            "prompt can be compared",
        )
    return None


def _scored(value: float, usage: JudgeUsage) -> Score:
    return replace(Score(value, None, 0, False), judge_usage=usage)
