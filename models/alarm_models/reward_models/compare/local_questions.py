"""Questions that compare answers with a checkpoint: texts, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.padded import pad_token_id
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.tokenizer import Tokenizer
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import MARK, CompareSpec
from alarm_models.reward_models.answer_tokens import answer_token_ids, require_in_vocabulary
from alarm_models.reward_models.base import LoadedCheckpoint, Prepared, require_outputs
from alarm_models.reward_models.compare.questions import INTRODUCTION, fenced
from alarm_models.reward_models.text_pipeline import TextPipeline, pooling_positions
from alarm_models.types import Sample, Span

__all__ = ["LocalQuestion", "QuestionInput", "QuestionTokenizer", "verdict_ids"]

#: The field of the second answer in the templates of a recipe.
_OTHER = "other"


@dataclass(frozen=True, slots=True)
class LocalQuestion(Sample):
    """A prompt with answers to compare: the completion, and the others in the order shown."""

    others: tuple[str, ...] = ()
    mark: str = ""


@dataclass(frozen=True, slots=True)
class QuestionInput(ModelInput):
    """The tokens of a question, and the number of its answers."""

    num_answers: int = 2


def verdict_ids(spec: CompareSpec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the verdict tokens; raise `CheckpointError`."""
    return answer_token_ids(spec.verdict_tokens, tokenizer, spec.checkpoint, "`verdicts`")


class QuestionTokenizer:
    """Renders and tokenizes questions for causal judges and classifiers of pairs."""

    def __init__(
        self, spec: CompareSpec, weights: LoadedCheckpoint, fields: Mapping[str, FieldPattern]
    ) -> None:
        self._spec = spec
        self._fields = fields
        self._pipeline = TextPipeline(spec, spec.template, weights, fields)
        self._pooling = weights.network.pooling or Pooling.LAST
        self._pad = pad_token_id(weights.network.config)
        self._templates: dict[int, TextTemplate] = {}  # by the number of answers
        if spec.format == "logit":
            require_outputs(weights.network, 1, "format `logit`")
        else:
            require_in_vocabulary(verdict_ids(spec, weights.tokenizer), weights.network)

    @property
    def keeps_messages(self) -> bool:
        """Whether a prompt stays messages, which the recipe's text renders, or is one text."""
        return self._spec.ask is not None or self._spec.template != "chat"

    def prepare(self, questions: Sequence[LocalQuestion]) -> list[Prepared]:
        """Render, tokenize and truncate questions."""
        prepared = self._pipeline.prepare(questions, self._render, self._features)
        return [
            replace(one, num_answers=1 + len(question.others))
            if isinstance(one, QuestionInput)
            else one
            for one, question in zip(prepared, questions, strict=True)
        ]

    def _render(self, sample: Sample) -> Rendered:
        if not isinstance(sample, LocalQuestion):
            raise TypeError("only a LocalQuestion can be rendered")
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
        if num_answers not in self._templates:
            text = self._spec.ask or _built_in_question(self._spec, num_answers)
            self._templates[num_answers] = TextTemplate(text, fields=self._fields)
        return self._templates[num_answers]

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        last = len(tokens.ids) - 1
        read = Span(last, last + 1)
        if self._spec.format == "logit":
            read = pooling_positions(tokens.ids, self._pooling, self._pad)
        return QuestionInput(tokens.ids, (read,), truncated, token_type_ids=tokens.token_type_ids)


def _name(at: int) -> str:
    """Return the field of an answer after the first: `other`, `other_3`, `other_4` and so on."""
    return _OTHER if at == 0 else f"{_OTHER}_{at + 2}"


def _built_in_question(spec: CompareSpec, num_answers: int) -> str:
    """Return the built-in template; the prompt comes first, so that questions share its tokens."""
    labels = [str(token).strip() for token in spec.verdict_tokens[:num_answers]]
    names = ["completion", *(_name(at) for at in range(num_answers - 1))]
    mark = f"{{{MARK}}}"
    answers = [
        fenced(mark, _literal(f"answer {label}"), f"{{{name}}}")
        for label, name in zip(labels, names, strict=True)
    ]
    some = ", ".join(labels[:-1])
    return "\n\n".join(
        [
            INTRODUCTION,
            fenced(mark, "request", "{prompt}"),
            *answers,
            spec.question,
            _literal(f"Reply only with {some} or {labels[-1]}."),
        ]
    )


def _literal(text: str) -> str:
    """Escape a text for a template."""
    return text.replace("{", "{{").replace("}", "}}")
