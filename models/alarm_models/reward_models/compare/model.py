"""Kind `compare`: a model in this process that compares completions, or a chat endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.errors import CheckpointError, SampleError
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import pair_ranker, sequence_classifier, token_scorer
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.read_text import ReadSample
from alarm_models.preprocessing.shown_sample import SampleView
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.preprocessing.untrusted_text import mark_of, neutralized, neutralized_sample
from alarm_models.recipe.specs import MARK, CompareSpec
from alarm_models.reward_models.base import (
    HostModel,
    LoadedCheckpoint,
    NeuralRewardModel,
    Outcome,
    Prepared,
    require_finite,
    require_outputs,
    score_shown,
    view_of,
)
from alarm_models.reward_models.compare.contest import (
    compare_groups,
    compare_with_references,
)
from alarm_models.reward_models.compare.endpoint import EndpointCompareModel
from alarm_models.reward_models.compare.pairrm import PairRmTexts
from alarm_models.reward_models.compare.questions import INTRODUCTION
from alarm_models.reward_models.registry import CheckpointFiles, host_kind, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline, pooling_positions
from alarm_models.types import Sample, Score, Span

__all__ = ["AskDevice", "CompareModel"]

#: Scores questions on the model's device; one outcome a question, in order.
AskDevice = Callable[[Sequence[Sample]], Awaitable[Sequence[Outcome]]]

#: The name of the second answer in the recipe's texts.
_OTHER = "other"

#: Groups that are compared at a time, and questions of one group that are queued at a time.
_GROUPS_AT_ONCE, _QUESTIONS_AT_ONCE = 64, 1024


@dataclass(frozen=True, slots=True)
class _Question(Sample):
    """A prompt and answers to it: the completion, and those that are shown after it."""

    others: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class _ComparisonInput(ModelInput):
    """The tokens of a question about some answers."""

    num_answers: int = 2


def _load_network(spec: CompareSpec, files: CheckpointFiles) -> Network:
    """Load the network of the recipe's format; raise `CheckpointError`."""
    if spec.format == "pairrm":
        return pair_ranker(files.source)
    if spec.format == "logit":
        return files.classifier(sequence_classifier)
    return token_scorer(files.source, _verdict_ids(spec, files.tokenizer))


def _verdict_ids(spec: CompareSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    try:
        return tuple(
            token if isinstance(token, int) else tokenizer.only_id(token)
            for token in spec.verdict_tokens
        )
    except CheckpointError as error:
        raise CheckpointError(f"{error}: write other tokens in `verdicts`") from error


@neural_kind(CompareSpec, load_network=_load_network)
class CompareModel(NeuralRewardModel):
    """A causal judge, PairRM or a classifier of pairs that compares the samples of each group.

    `compare` makes the questions, which run on the device like samples: `prepare` and `read` are
    those of a question. The score of a question is the share that its first answer wins.
    """

    def __init__(
        self,
        spec: CompareSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        is_ranker = spec.format == "pairrm"
        # The configuration's limit is that of DeBERTa's pretraining, which has no table of it.
        limited = spec.model_copy(update={"max_tokens": None}) if is_ranker else spec
        super().__init__(limited, weights, fingerprint)
        self._spec = spec
        self._control_tokens = weights.tokenizer.added_tokens
        self._reference = TextTemplate("{reference}", fields=fields)
        self._texts: _QuestionTexts | PairRmTexts
        if is_ranker:
            self._texts = PairRmTexts(spec, weights)
            self.limit = self._texts.max_tokens
        else:
            self._texts = _QuestionTexts(spec, weights, fields)

    @property
    def pass_key(self) -> None:
        """None: no other model reads these questions."""
        return None

    async def compare(self, samples: Sequence[Sample], ask: AskDevice) -> list[Outcome]:
        """Compare the samples of each group, or each with its reference; ``ask`` runs questions."""
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
        """Render, tokenize and truncate questions, whose texts are what is shown of samples."""
        return self.prepare_shown(samples)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Prepare questions; a plain sample is compared with itself, to probe the model."""
        questions = [
            one
            if isinstance(one, _Question)
            else self._question(one, [one.completion_text, one.completion_text])
            for one in samples
        ]
        return self._texts.prepare(questions)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read what the first answer wins; of more than two, the probability of each."""
        values = outputs[0].tolist()
        require_finite(values)
        num_tokens, truncated = features.num_tokens, features.truncated
        if not isinstance(features, _ComparisonInput) or self._spec.format != "verdict":
            return Score(sigmoid(values[0]), None, num_tokens, truncated)
        if self._spec.method != "list":
            return Score(sigmoid(values[0] - values[1]), None, num_tokens, truncated)
        shares = outputs[0, : features.num_answers].double().softmax(-1).tolist()
        named = {str(at): share for at, share in enumerate(shares)}
        return Score(shares[0], None, num_tokens, truncated, outputs=named)

    def read_sample(self, sample: Sample) -> ReadSample | SampleError:
        """Return what is shown of a sample; its texts depend on the rest of its group."""
        view = view_of(sample, self._view_rules)
        if not isinstance(view, SampleView):
            return view
        return ReadSample((), omitted=view.shown.omitted if view.shown else (), shown=view.shown)

    def _cut_off(self, features: ModelInput) -> set[str]:
        if self._spec.format == "pairrm":
            return set()  # the features name the texts that were truncated
        return super()._cut_off(features)

    @property
    def _max_answers(self) -> int:
        return len(self._spec.verdict_tokens)

    def _question(self, sample: Sample, texts: Sequence[str]) -> _Question:
        """Return a question about all of some texts, in which no control token is left."""
        neutral = neutralized_sample(sample, self._control_tokens)
        first, *others = (neutralized(text, self._control_tokens) for text in texts)
        text = neutral.prompt_with_roles
        return _Question(
            neutral.prompt if self._texts.has_own_prompt else text,
            first,
            neutral.fields,
            others=tuple(others),
            mark=mark_of(text, first, *others),
        )


@dataclass(slots=True)
class _LocalJudge:
    """Asks a model about answers to a prompt; ``about_all`` makes a question about all of them.

    All questions of a group have the mark of that one, so that they share the prompt's tokens.
    """

    about_all: Callable[[], _Question]
    ask: AskDevice
    max_answers: int
    question: _Question | None = None
    #: The tokens and the computed tokens of the questions in which a text was the first.
    costs: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: What some question about a text left out, and whether one was truncated.
    omitted: dict[int, frozenset[str]] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)

    async def shares(self, orders: Sequence[tuple[int, int]]) -> list[float | SampleError]:
        """Ask about pairs on the device, in its own batches."""
        found: list[float | SampleError] = []
        for outcome in await self._outcomes(orders):
            found.append(outcome if isinstance(outcome, SampleError) else _value(outcome))
        return found

    async def list_scores(
        self, orders: Sequence[Sequence[int]]
    ) -> list[Sequence[float] | SampleError]:
        """Return the probability of each text's token in questions about all of them."""
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
        """Return a score; the tokens of a text's questions are counted once."""
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
        if self.question is None:  # off the event loop, as texts may be long
            self.question = await asyncio.to_thread(self.about_all)
        outcomes: list[Outcome] = []
        for start in range(0, len(orders), _QUESTIONS_AT_ONCE):
            some = orders[start : start + _QUESTIONS_AT_ONCE]
            outcomes += await self.ask([_asked(self.question, order) for order in some])
        for order, outcome in zip(orders, outcomes, strict=True):
            if isinstance(outcome, Score):
                self._count(order, outcome)
        return outcomes

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


def _asked(about_all: _Question, order: Sequence[int]) -> _Question:
    """Return the question about some of the texts, in an order."""
    texts = (about_all.completion_text, *about_all.others)
    first, *others = (texts[at] for at in order)
    return replace(about_all, completion=first, others=tuple(others))


def _value(score: Score) -> float:
    if score.value is None:
        raise RuntimeError("a comparison has no value")
    return score.value


class _QuestionTexts:
    """Questions as texts of their own, for causal judges and classifiers of pairs."""

    def __init__(
        self, spec: CompareSpec, weights: LoadedCheckpoint, fields: Mapping[str, FieldPattern]
    ) -> None:
        self._spec = spec
        self._fields = fields
        self._pipeline = TextPipeline(spec, spec.template, weights, fields)
        self._pooling = weights.network.pooling or Pooling.LAST
        self._pad = weights.network.config.pad_token_id
        self._asked: dict[int, TextTemplate] = {}
        if spec.format == "logit":
            require_outputs(weights.network, 1, "format `logit`")
        else:
            vocabulary = int(weights.network.config.vocab_size)
            for token in _verdict_ids(spec, weights.tokenizer):
                if not 0 <= token < vocabulary:
                    raise CheckpointError(
                        f"verdicts has token {token}, outside the vocabulary of {vocabulary}"
                    )

    @property
    def has_own_prompt(self) -> bool:
        """Whether the recipe's text, rather than the built-in question, shows the prompt."""
        return self._spec.ask is not None or self._spec.template != "chat"

    def prepare(self, questions: Sequence[_Question]) -> list[Prepared]:
        """Render, tokenize and truncate questions."""
        prepared = self._pipeline.prepare(questions, self._render, self._features)
        return [
            replace(one, num_answers=1 + len(question.others))
            if isinstance(one, _ComparisonInput)
            else one
            for one, question in zip(prepared, questions, strict=True)
        ]

    def _render(self, sample: Sample) -> Rendered:
        if not isinstance(sample, _Question):
            raise TypeError("a question is rendered")
        names = [_name(at) for at in range(len(sample.others))]
        fields = {**sample.fields, **dict(zip(names, sample.others, strict=True))}
        shown = replace(sample, fields={**fields, MARK: sample.mark})
        if self._spec.template != "chat":
            return self._pipeline.render(shown)
        if self._spec.ask is not None:
            self._pipeline.require_renderable(shown)
        begins_turn = self._spec.format == "verdict" and self._spec.generation_prompt
        question = self._template(1 + len(sample.others)).render(shown)
        return self._pipeline.render_question(question, begins_turn=begins_turn)

    def _template(self, num_answers: int) -> TextTemplate:
        if num_answers not in self._asked:
            text = self._spec.ask or _built_in_question(self._spec, num_answers)
            self._asked[num_answers] = TextTemplate(text, fields=self._fields)
        return self._asked[num_answers]

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        last = len(tokens.ids) - 1
        read = Span(last, last + 1)
        if self._spec.format == "logit":
            read = pooling_positions(tokens.ids, self._pooling, self._pad)
        return _ComparisonInput(
            tokens.ids, (read,), truncated, token_type_ids=tokens.token_type_ids
        )


def _name(at: int) -> str:
    """Return the name in templates of an answer after the first."""
    return _OTHER if at == 0 else f"{_OTHER}_{at + 2}"


def _built_in_question(spec: CompareSpec, num_answers: int) -> str:
    """Return the template of a question; the prompt comes first, so that questions share it."""
    labels = [str(token).strip() for token in spec.verdict_tokens[:num_answers]]
    names = ["completion", *(_name(at) for at in range(num_answers - 1))]
    answers = [_fenced(f"answer {label}", name) for label, name in zip(labels, names, strict=True)]
    some = ", ".join(labels[:-1])
    return "\n\n".join(
        [
            INTRODUCTION,
            _fenced("request", "prompt"),
            *answers,
            spec.question,
            _literal(f"Reply only with {some} or {labels[-1]}."),
        ]
    )


def _fenced(what: str, name: str) -> str:
    what = _literal(what)
    return f"[{{{MARK}}} {what}]\n{{{name}}}\n[{{{MARK}}} end of {what}]"


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@host_kind(CompareSpec)
def _load(spec: CompareSpec, fields: Mapping[str, FieldPattern]) -> HostModel:
    if spec.endpoint is None:
        raise TypeError("a checkpoint compares in this process")
    return EndpointCompareModel(spec, spec.endpoint, fields)
