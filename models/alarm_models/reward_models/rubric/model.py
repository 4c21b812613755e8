"""Kind `rubric`: criteria judged by a chat endpoint, or by a causal model in this process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.errors import SampleError, quoted
from alarm_models.modeling.inputs import BatchLayout, ModelInput
from alarm_models.modeling.loader import token_scorer
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import CRITERIA, EndpointSpec, RubricSpec
from alarm_models.reward_models.answer_tokens import require_in_vocabulary, scored_tokens
from alarm_models.reward_models.base import (
    HostModel,
    LoadedCheckpoint,
    NeuralRewardModel,
    Outcome,
    Prepared,
    gather_limited,
)
from alarm_models.reward_models.judge_endpoint.client import Question
from alarm_models.reward_models.judge_endpoint.model import EndpointJudgeModel
from alarm_models.reward_models.prefixes import num_shared_tokens
from alarm_models.reward_models.registry import CheckpointFiles, host_kind, neural_kind
from alarm_models.reward_models.rubric.aggregation import Verdict, score_of_verdicts
from alarm_models.reward_models.rubric.answers import (
    ID_CHARS,
    WrittenVerdict,
    answer_schema,
    quoted_spans,
    read_verdicts,
)
from alarm_models.reward_models.rubric.criteria import Criterion, Rubric, rubric_of
from alarm_models.reward_models.rubric.questions import (
    ASKED_TO_WRITE,
    ASKED_YES_OR_NO,
    criterion_text,
    form_of_answer,
    marked_sample,
    numbered,
)
from alarm_models.reward_models.text_pipeline import TextPipeline
from alarm_models.types import JudgeUsage, Sample, Score, Span

__all__ = ["EndpointRubricModel", "RubricModel"]

#: Alternatives of the verdict's token that are requested for its probability.
_TOP_LOGPROBS = 20


def _question(spec: RubricSpec, default: str, fields: Mapping[str, FieldPattern]) -> TextTemplate:
    return TextTemplate(default if spec.question is None else spec.question, fields=fields)


def _load_network(spec: RubricSpec, files: CheckpointFiles) -> Network:
    return token_scorer(files.source, scored_tokens(spec, files.tokenizer))


@dataclass(frozen=True, slots=True)
class _RubricInput(ModelInput):
    """The questions about one sample, one token sequence for each criterion without a problem."""

    rubric: Rubric = field(default_factory=lambda: Rubric(()))
    #: Why a criterion cannot be asked about, by its name.
    problems: Mapping[str, SampleError] = field(default_factory=dict)


@neural_kind(RubricSpec, load_network=_load_network)
class RubricModel(NeuralRewardModel):
    """A causal language model that is asked about each criterion and answers yes or no.

    No text is generated: the verdict is read from the logits of the next token. The questions about
    one sample share their prefix, which a packed batch computes once.
    """

    def __init__(
        self,
        spec: RubricSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        require_in_vocabulary(scored_tokens(spec, weights.tokenizer), weights.network)
        self._spec = spec
        self._control_tokens = weights.tokenizer.added_tokens
        self._texts = TextPipeline(spec, "chat", weights, fields)
        self._question = _question(spec, ASKED_YES_OR_NO, fields)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render a question for each criterion, tokenize and truncate it."""
        return [self._prepared(sample) for sample in samples]

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the verdicts from the logits of the next tokens, ``[criteria, 3]``."""
        if not isinstance(features, _RubricInput):
            raise TypeError("the input was prepared by another kind")
        margins = iter((outputs[:, 0] - outputs[:, 1]).tolist())
        score = score_of_verdicts(
            features.rubric,
            [
                features.problems.get(one.name) or self._verdict(next(margins))
                for one in features.rubric.criteria
            ],
            skips_failed=self._spec.on_failure == "skip",
        )
        return replace(score, num_tokens=features.num_tokens, truncated=features.truncated)

    def _verdict(self, margin: float) -> Verdict | SampleError:
        if not math.isfinite(margin):
            return SampleError("non_finite", "the model gave a number that is not finite")
        if self._spec.measure == "probability":
            return Verdict(sigmoid(margin))
        return Verdict(float(margin > 0))

    def _prepared(self, sample: Sample) -> Prepared:
        try:
            rubric = rubric_of(sample, self._spec)
        except SampleError as error:
            return error.with_traceback(None)
        marked, _ = marked_sample(sample, "", self._control_tokens)
        asked = [
            replace(
                marked,
                fields={**marked.fields, CRITERIA: criterion_text(one, self._control_tokens)},
            )
            for one in rubric.criteria
        ]
        inputs: list[ModelInput] = []
        problems: dict[str, SampleError] = {}
        prepared = self._texts.prepare(asked, self._render, self._features)
        for criterion, one in zip(rubric.criteria, prepared, strict=True):
            if isinstance(one, SampleError):
                problems[criterion.name] = one
            elif isinstance(one, ModelInput):
                inputs.append(one)
        if problems and (self._spec.on_failure == "fail" or not inputs):
            name, problem = next(iter(problems.items()))
            return SampleError(problem.code, f"criterion {quoted(name)}: {problem.message}")
        first, *others = (one.sequences[0] for one in inputs)
        joined = _RubricInput(
            first.ids,
            first.read_positions,
            any(one.truncated for one in inputs),
            further_sequences=tuple(others),
            omitted=inputs[0].omitted,
            rubric=rubric,
            problems=problems,
        )
        if self.cost is not BatchLayout.PREFIX_SHARED:
            return joined
        return replace(joined, num_shared=num_shared_tokens(joined.ids_of_sequences))

    def _render(self, sample: Sample) -> Rendered:
        return self._texts.render_question(self._question.render(sample), begins_turn=True)

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        last = len(tokens.ids) - 1
        return ModelInput(tokens.ids, (Span(last, last + 1),), truncated)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some criteria of a sample, which are asked about in one question."""

    sample: Sample
    criteria: tuple[Criterion, ...]


#: The verdicts on a part's criteria, in order, and what they cost.
_PartVerdicts = tuple[list[Verdict | SampleError], JudgeUsage]


class EndpointRubricModel(EndpointJudgeModel):
    """Asks a judge behind a chat endpoint; a failure there fails only its criteria."""

    def __init__(
        self, spec: RubricSpec, endpoint: EndpointSpec, fields: Mapping[str, FieldPattern]
    ) -> None:
        super().__init__(spec, endpoint, fields)
        self._spec = spec
        self._question = _question(spec, ASKED_TO_WRITE, fields)

    async def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Judge samples with concurrent requests."""
        return await self._score_shown(samples, self._judge)

    async def _judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        rubrics = [self._rubric(sample) for sample in samples]
        size = self._spec.criteria_per_call
        parts = [
            _Part(sample, rubric.criteria[start : start + size])
            for sample, rubric in zip(samples, rubrics, strict=True)
            if isinstance(rubric, Rubric)
            for start in range(0, len(rubric.criteria), size)
        ]
        answers = iter(await gather_limited(self._verdicts, parts, self._max_concurrent))
        outcomes: list[Outcome] = []
        for rubric in rubrics:
            if isinstance(rubric, SampleError):
                outcomes.append(rubric)
                continue
            own = [next(answers) for _ in range(0, len(rubric.criteria), size)]
            outcomes.append(self._scored(rubric, own))
        return outcomes

    def _rubric(self, sample: Sample) -> Rubric | SampleError:
        try:
            return rubric_of(sample, self._spec)
        except SampleError as error:
            return error.with_traceback(None)

    def _scored(self, rubric: Rubric, answers: Sequence[_PartVerdicts]) -> Outcome:
        verdicts = [verdict for some, _ in answers for verdict in some]
        usage = sum((one for _, one in answers), JudgeUsage())
        try:
            score = score_of_verdicts(
                rubric, verdicts, skips_failed=self._spec.on_failure == "skip"
            )
        except SampleError as error:
            return error.with_traceback(None)
        return replace(score, judge_usage=usage)

    async def _verdicts(self, part: _Part) -> _PartVerdicts:
        """Ask about some criteria; of several votes, more than half must be readable."""
        spec, num_criteria = self._spec, len(part.criteria)
        sample, mark = marked_sample(part.sample, numbered(part.criteria))
        try:
            text = self._question.render(sample).text
            form = form_of_answer(mark[:ID_CHARS], num_criteria, has_quotes=spec.quotes)
            is_probability = spec.measure == "probability"
            result = await self._endpoint.ask(
                Question(
                    [{"role": "user", "content": f"{text}\n\n{form}"}],
                    answer_schema(mark, num_criteria, has_quotes=spec.quotes),
                    num_votes=spec.n,
                    top_logprobs=_TOP_LOGPROBS if is_probability else 0,
                )
            )
        except SampleError as error:
            return [error.with_traceback(None)] * num_criteria, JudgeUsage()
        votes = [
            read_verdicts(reply, mark, num_criteria, is_probability=is_probability)
            for reply in result.replies
        ]
        problems = [
            next((one for one in vote if isinstance(one, SampleError)), None) for vote in votes
        ]
        for reply, problem in zip(result.replies, problems, strict=True):
            if problem is not None:
                self._endpoint.report_unread(reply, problem)
        if any(problems):
            await self._endpoint.forget(result)
        completion = part.sample.completion_text
        verdicts = await asyncio.to_thread(
            lambda: [_mean_vote(some, completion) for some in zip(*votes, strict=True)]
        )
        return verdicts, result.usage


def _mean_vote(
    votes: Sequence[WrittenVerdict | SampleError], completion: str
) -> Verdict | SampleError:
    """Return the mean of the readable votes on a criterion, if these are more than half."""
    read = [vote for vote in votes if isinstance(vote, WrittenVerdict)]
    problems = [vote for vote in votes if isinstance(vote, SampleError)]
    if problems and 2 * len(read) <= len(votes):
        if len(votes) == 1:
            return problems[0]
        return SampleError(
            "model_failed",
            f"{len(read)} of {len(votes)} votes could be read, more than half must be; of the "
            f"first that could not: {problems[0].message}",
        )
    met = sum(vote.met for vote in read) / len(read)
    quotes = [quote for vote in read for quote in vote.quotes]
    return Verdict(met, quoted_spans(completion, quotes))


@host_kind(RubricSpec)
def _load(spec: RubricSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    if spec.endpoint is None:
        raise TypeError("a rubric without an endpoint is judged by a checkpoint")
    return EndpointRubricModel(spec, spec.endpoint, fields)
