"""Kind `compare` with an endpoint: a judge over HTTP that compares the completions of a group."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from alarm_models.errors import SampleError
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.preprocessing.untrusted_text import neutralized
from alarm_models.recipe.specs import CompareSpec, EndpointSpec
from alarm_models.reward_models.base import Outcome, gather_limited
from alarm_models.reward_models.compare.groups import (
    compare_groups,
    compare_with_references,
)
from alarm_models.reward_models.compare.questions import (
    ListQuestion,
    PairQuestion,
    RankingQuestion,
)
from alarm_models.reward_models.judge_endpoint.client import JudgeEndpoint, JudgeReply
from alarm_models.reward_models.judge_endpoint.model import EndpointJudgeModel
from alarm_models.types import JudgeUsage, Sample, Score

__all__ = ["EndpointCompareModel"]

_Asked = TypeVar("_Asked")
_Read = TypeVar("_Read")


class EndpointCompareModel(EndpointJudgeModel):
    """A judge behind a chat endpoint that compares the samples of each group.

    Equal completions are compared once and get the same score. A sample that has failed before is
    not compared; a sample that is alone in its group fails.
    """

    def __init__(
        self, spec: CompareSpec, endpoint: EndpointSpec, fields: Mapping[str, FieldPattern]
    ) -> None:
        super().__init__(spec, endpoint, fields)
        self._spec = spec
        self._question = TextTemplate(spec.question, fields=fields)
        self._reference = TextTemplate("{reference}", fields=fields)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Compare the samples of each group, or each sample with its reference."""
        return await self._score_shown(samples, self._compare)

    async def _compare(self, samples: Sequence[Sample]) -> list[Outcome]:
        spec, at_once = self._spec, self._max_concurrent
        if spec.compares_samples:
            return await compare_groups(spec, samples, self._judge, at_once)
        return await compare_with_references(
            spec, samples, lambda one: self._reference.render(one).text, self._judge, at_once
        )

    def _judge(self, sample: Sample, texts: Sequence[str]) -> _EndpointJudge:
        limit = self._max_concurrent
        return _EndpointJudge(self._spec, self._endpoint, self._question, limit, sample, texts)


@dataclass(slots=True)
class _EndpointJudge:
    """Asks the endpoint about texts that answer a sample's prompt, and counts the usage."""

    spec: CompareSpec
    endpoint: JudgeEndpoint
    template: TextTemplate
    max_concurrent: int
    sample: Sample
    texts: Sequence[str]
    usage: JudgeUsage = field(default_factory=JudgeUsage)

    async def shares(self, orders: Sequence[tuple[int, int]]) -> list[float | SampleError]:
        """Ask about pairs, at most as many at a time as the endpoint allows."""
        return await self._all(self._share, orders)

    async def list_scores(
        self, orders: Sequence[Sequence[int]]
    ) -> list[Sequence[float] | SampleError]:
        """Ask about all texts in each order."""
        return await self._all(self._list_scores, orders)

    def scored(self, text: int, value: float) -> Score:
        """Return a score; the first one of a group has the usage of all of its questions."""
        usage, self.usage = self.usage, JudgeUsage()
        return replace(Score(value, None, 0, False), judge_usage=usage)

    async def _all(
        self, ask: Callable[[_Asked], Awaitable[_Read]], orders: Sequence[_Asked]
    ) -> list[_Read | SampleError]:
        async def asked(order: _Asked) -> _Read | SampleError:
            try:
                return await ask(order)
            except SampleError as error:
                return error.with_traceback(None)

        return await gather_limited(asked, orders, self.max_concurrent)

    async def _share(self, order: tuple[int, int]) -> float:
        texts = [self.texts[at] for at in order]
        asked: PairQuestion | RankingQuestion
        if self.spec.format == "genrm":
            asked = RankingQuestion(self.sample, texts)
        else:
            asked = PairQuestion(self.sample.prompt_with_roles, texts, self._question)
        votes = await self._votes(asked, asked.share)
        return math.fsum(votes) / len(votes)

    async def _list_scores(self, order: Sequence[int]) -> Sequence[float]:
        texts = [self.texts[at] for at in order]
        asked = ListQuestion(self.sample.prompt_with_roles, texts, self._question)
        votes = await self._votes(asked, asked.scores)
        return [math.fsum(one) / len(votes) for one in zip(*votes, strict=True)]

    async def _votes(
        self,
        asked: PairQuestion | RankingQuestion | ListQuestion,
        read: Callable[[JudgeReply], _Read],
    ) -> list[_Read]:
        """Return the readable answers; raise `SampleError` unless they are more than half."""
        result = await self.endpoint.ask(asked.to_judge(self.spec.n))
        self.usage += result.usage
        votes: list[_Read] = []
        problem: SampleError | None = None
        for reply in result.replies:
            try:
                votes.append(read(reply))
            except SampleError as error:
                self.endpoint.report_unread(reply, error)
                problem = problem or error
        if problem is not None:
            await self.endpoint.forget(result)
            if 2 * len(votes) <= len(result.replies):
                raise problem
        return votes

    @property
    def _question(self) -> str:
        return neutralized(self.template.render(self.sample).text)
