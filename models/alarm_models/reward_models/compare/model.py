"""Kind `compare`: compares completions with a checkpoint, or loads the model of an endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import pair_ranker, sequence_classifier, token_scorer
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.read_text import ReadSample
from alarm_models.preprocessing.shown_sample import SampleView
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.preprocessing.untrusted_text import mark_of, neutralized, neutralized_sample
from alarm_models.recipe.specs import CompareSpec
from alarm_models.reward_models.base import (
    HostModel,
    LoadedCheckpoint,
    NeuralRewardModel,
    Outcome,
    Prepared,
    require_finite,
    score_shown,
    view_of,
)
from alarm_models.reward_models.compare.endpoint import EndpointCompareModel
from alarm_models.reward_models.compare.groups import (
    compare_groups,
    compare_with_references,
)
from alarm_models.reward_models.compare.local_questions import (
    LocalQuestion,
    QuestionInput,
    QuestionTokenizer,
    verdict_ids,
)
from alarm_models.reward_models.compare.pairrm import PairRmTokenizer
from alarm_models.reward_models.registry import CheckpointFiles, host_kind, neural_kind
from alarm_models.types import Sample, Score

__all__ = ["AskDevice", "CompareModel"]

#: Scores questions on the model's device; one outcome per question, in order.
AskDevice = Callable[[Sequence[Sample]], Awaitable[Sequence[Outcome]]]

#: Maximum groups compared at a time, and maximum questions of one group queued at a time.
_GROUPS_AT_ONCE, _QUESTIONS_AT_ONCE = 64, 1024


def _load_network(spec: CompareSpec, files: CheckpointFiles) -> Network:
    """Load the network of the recipe's format; raise `CheckpointError`."""
    if spec.format == "pairrm":
        return pair_ranker(files.source)
    if spec.format == "logit":
        return files.classifier(sequence_classifier)
    return token_scorer(files.source, verdict_ids(spec, files.tokenizer))


@neural_kind(CompareSpec, load_network=_load_network)
class CompareModel(NeuralRewardModel):
    """A causal judge, PairRM or a classifier of pairs that compares the samples of each group.

    `compare` creates questions, which run on the device like samples: `prepare` and `read` take
    questions. The score of a question is the share that its first answer wins.
    """

    def __init__(
        self,
        spec: CompareSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        is_ranker = spec.format == "pairrm"
        # PairRmTokenizer applies max_tokens. The limit of pretraining, in config.json, does not
        # hold for DeBERTa's relative positions.
        limited = spec.model_copy(update={"max_tokens": None}) if is_ranker else spec
        super().__init__(limited, weights, fingerprint)
        self._spec = spec
        self._control_tokens = weights.tokenizer.added_tokens
        self._reference = TextTemplate("{reference}", fields=fields)
        self._question_tokenizer: QuestionTokenizer | PairRmTokenizer
        if is_ranker:
            self._question_tokenizer = PairRmTokenizer(spec, weights)
            self.limit = self._question_tokenizer.max_tokens
        else:
            self._question_tokenizer = QuestionTokenizer(spec, weights, fields)

    @property
    def pass_key(self) -> None:
        """None: no other model reads these questions."""
        return None

    async def compare(self, samples: Sequence[Sample], ask: AskDevice) -> list[Outcome]:
        """Compare samples in groups or with references; ``ask`` scores the questions."""
        return await score_shown(samples, self._view_rules, partial(self._compare, ask=ask))

    async def _compare(self, samples: Sequence[Sample], ask: AskDevice) -> list[Outcome]:
        def judge(sample: Sample, texts: Sequence[str]) -> _LocalJudge:
            return _LocalJudge(partial(self._question, sample, texts), ask, self._max_answers)

        if self._spec.compares_samples:
            return await compare_groups(self._spec, samples, judge, _GROUPS_AT_ONCE)
        return await compare_with_references(
            self._spec,
            samples,
            lambda one: self._reference.render(one).text,
            judge,
            _QUESTIONS_AT_ONCE,
        )

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render, tokenize and truncate questions; `compare` has applied the view of samples."""
        return self.prepare_shown(samples)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Prepare questions; a plain sample, as of a probe, is compared with itself."""
        questions = [
            one
            if isinstance(one, LocalQuestion)
            else self._question(one, [one.completion_text, one.completion_text])
            for one in samples
        ]
        return self._question_tokenizer.prepare(questions)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the share of the first answer; for a list, also the probability of each answer."""
        values = outputs[0].tolist()
        require_finite(values)
        num_tokens, truncated = features.num_tokens, features.truncated
        if not isinstance(features, QuestionInput) or self._spec.format != "verdict":
            return Score(sigmoid(values[0]), None, num_tokens, truncated)
        if self._spec.method != "list":
            return Score(sigmoid(values[0] - values[1]), None, num_tokens, truncated)
        shares = outputs[0, : features.num_answers].double().softmax(-1).tolist()
        named = {str(at): share for at, share in enumerate(shares)}
        return Score(shares[0], None, num_tokens, truncated, outputs=named)

    def read_sample(self, sample: Sample) -> ReadSample | SampleError:
        """Return what is shown of a sample, but no texts, which depend on the rest of its group."""
        view = view_of(sample, self._view_rules)
        if not isinstance(view, SampleView):
            return view
        return ReadSample((), omitted=view.shown.omitted if view.shown else (), shown=view.shown)

    def _cut_off(self, features: ModelInput) -> set[str]:
        if self._spec.format == "pairrm":
            return set()  # PairRmTokenizer names the truncated texts in the features
        return super()._cut_off(features)

    @property
    def _max_answers(self) -> int:
        return len(self._spec.verdict_tokens)

    def _question(self, sample: Sample, texts: Sequence[str]) -> LocalQuestion:
        """Return a question about all of these texts, without control tokens."""
        neutral = neutralized_sample(sample, self._control_tokens)
        first, *others = (neutralized(text, self._control_tokens) for text in texts)
        text = neutral.prompt_with_roles
        return LocalQuestion(
            neutral.prompt if self._question_tokenizer.keeps_messages else text,
            first,
            neutral.fields,
            others=tuple(others),
            mark=mark_of(text, first, *others),
        )


@dataclass(slots=True)
class _LocalJudge:
    """Asks a model about answers to a prompt; ``build_question`` returns one about all of them.

    All questions of a group have the mark of that question, so that they share the prompt's tokens.
    """

    build_question: Callable[[], LocalQuestion]
    ask: AskDevice
    max_answers: int
    question: LocalQuestion | None = None
    #: Tokens and computed tokens of the questions in which a text was the first.
    costs: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: What the questions about a text omitted, and the texts with a truncated question.
    omitted: dict[int, frozenset[str]] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)

    async def shares(self, orders: Sequence[tuple[int, int]]) -> list[float | SampleError]:
        """Ask about pairs on the device."""
        found: list[float | SampleError] = []
        for outcome in await self._outcomes(orders):
            found.append(outcome if isinstance(outcome, SampleError) else _value(outcome))
        return found

    async def list_scores(
        self, orders: Sequence[Sequence[int]]
    ) -> list[Sequence[float] | SampleError]:
        """Ask about all texts in each order; a score is the probability of the text's verdict."""
        num_texts = len(orders[0])
        if num_texts > self.max_answers:
            raise SampleError(
                "invalid_sample",
                f"the group has {num_texts} different completions, and `verdicts` has tokens for "
                f"{self.max_answers}: send smaller groups, or use another method than `list`",
            )
        return [
            one if isinstance(one, SampleError) else list((one.outputs or {}).values())
            for one in await self._outcomes(orders)
        ]

    def scored(self, text: int, value: float) -> Score:
        """Return a score with the tokens of the text's questions, which are reported once."""
        num_tokens, num_computed = self.costs.pop(text, (0, 0))
        return Score(
            value,
            None,
            num_tokens,
            text in self.truncated,
            num_computed,
            omitted=tuple(sorted(self.omitted.get(text, ()))),
        )

    async def _outcomes(self, orders: Sequence[Sequence[int]]) -> list[Outcome]:
        if self.question is None:  # in a thread, because texts may be long
            self.question = await asyncio.to_thread(self.build_question)
        outcomes: list[Outcome] = []
        for start in range(0, len(orders), _QUESTIONS_AT_ONCE):
            some = orders[start : start + _QUESTIONS_AT_ONCE]
            outcomes += await self.ask([_question_about(self.question, order) for order in some])
        for order, outcome in zip(orders, outcomes, strict=True):
            if isinstance(outcome, Score):
                self._count(order, outcome)
        return [
            _with_lengths(self.question, order, outcome)
            for order, outcome in zip(orders, outcomes, strict=True)
        ]

    def _count(self, order: Sequence[int], score: Score) -> None:
        num_tokens, num_computed = self.costs.get(order[0], (0, 0))
        self.costs[order[0]] = (
            num_tokens + score.num_tokens,
            num_computed + score.num_computed_tokens,
        )
        for at in order:
            self.omitted[at] = self.omitted.get(at, frozenset()) | {*score.omitted}
            if score.truncated:
                self.truncated.add(at)


def _question_about(whole: LocalQuestion, order: Sequence[int]) -> LocalQuestion:
    """Return a question about some of the texts of a whole group, in an order."""
    texts = (whole.completion_text, *whole.others)
    first, *others = (texts[at] for at in order)
    return replace(whole, completion=first, others=tuple(others))


def _with_lengths(whole: LocalQuestion, order: Sequence[int], outcome: Outcome) -> Outcome:
    """Return an outcome; if a question is too long, its error says how long the completions are."""
    if not isinstance(outcome, SampleError) or outcome.code != "too_long":
        return outcome
    texts = (whole.completion_text, *whole.others)
    lengths = ", ".join(str(len(texts[at])) for at in order)
    return SampleError(
        outcome.code,
        f"a question about completions of {lengths} characters is too long: {outcome.message}",
    )


def _value(score: Score) -> float:
    if score.value is None:
        raise RuntimeError("a comparison has no value")
    return score.value


@host_kind(CompareSpec)
def _load(spec: CompareSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    if spec.endpoint is None:
        raise TypeError("kind compare with a checkpoint is loaded as a neural model")
    return EndpointCompareModel(spec, spec.endpoint, fields)
