"""Kind `judge`: the rating that a causal model writes as text, generated in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.modeling.generation import (
    NO_TOKEN,
    NOT_FINITE,
    GenerationSettings,
    TextGenerator,
)
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import text_generator
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.templates import (
    FieldPattern,
    Rendered,
    TextTemplate,
    conversation,
    num_prompt_messages,
)
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import JudgeMessage, JudgeSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    max_tokens,
    num_positions,
    require_finite,
)
from alarm_models.reward_models.judge_answers import (
    AnswerReader,
    JudgeAnswer,
    opened_thoughts,
)
from alarm_models.reward_models.registry import CheckpointFiles, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline, turns_of
from alarm_models.types import Message, Sample, Score, Span

__all__ = ["JudgeModel"]

#: A prompt or a completion.
_Content = str | tuple[Message, ...]

#: The fewest tokens that a question may have.
_MIN_QUESTION = 8

#: Tokens at the end of a question in which the start of the judge's reasoning is looked for.
_NUM_LAST = 16


def _load_network(spec: JudgeSpec, files: CheckpointFiles) -> TextGenerator:
    shared = files.classifier(text_generator)
    if not isinstance(shared, TextGenerator):
        raise TypeError("a judge requires a network that generates text")
    end = files.tokenizer.end_id
    settings = GenerationSettings(spec.max_new_tokens, spec.n, spec.temperature, spec.seed)
    return shared.with_settings(settings, () if end is None else (end,))


@neural_kind(JudgeSpec, load_network=_load_network)
class JudgeModel(NeuralRewardModel):
    """A causal language model that is asked about a sample and answers with a rating.

    An answer without a rating, or one that reaches ``max_new_tokens``, fails its sample.
    """

    def __init__(
        self,
        spec: JudgeSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        if not isinstance(weights.network, TextGenerator):
            raise TypeError("a judge requires a network that generates text")
        self._spec = spec
        self._settings = weights.network.settings
        self._end_ids = frozenset(weights.network.end_ids)
        self.limit = limit = _question_limit(spec, weights)
        limited = spec.model_copy(update={"max_tokens": limit})
        self._texts = TextPipeline(limited, spec.template, weights, fields)
        self._prompt_turns = None if spec.prompt_turns is None else turns_of(spec.prompt_turns)
        self._turns = _turns_of(spec, fields)
        self._answers = AnswerReader(spec, "max_new_tokens")
        self._require_rendered(spec)

    def _require_rendered(self, spec: JudgeSpec) -> None:
        """Raise `CheckpointError` if the chat template refuses the recipe's messages."""
        named = [name for text in spec.templates for name in TextTemplate(text).names]
        sample = Sample("A prompt.", "A completion.", fields=dict.fromkeys(named, "text"))
        try:
            self._render(sample)
        except SampleError as error:
            raise CheckpointError(
                f"{spec.checkpoint}: the question cannot be rendered: {error.message}. Write "
                "`rubric`, which is one user message, or other roles in `messages`"
            ) from error

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render the question, tokenize and truncate it."""
        return self._texts.prepare(samples, self._render, self._features)

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        return self._texts.read_texts(sample, self._render)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the rating in the answers, ``[answers, tokens]`` token ids."""
        if (outputs == NOT_FINITE).any():
            raise SampleError("non_finite", "the judge gave a number that is not finite")
        opened = opened_thoughts(self._tokenizer.decode(features.ids[-_NUM_LAST:]))
        answers = [self._answer(row, opened) for row in outputs.tolist()]
        value = self._answers.score(answers)
        require_finite([value])
        num_tokens = features.num_tokens + int((outputs != NO_TOKEN).sum())
        return Score(value, None, num_tokens, features.truncated)

    def _answer(self, row: Sequence[int], opened: str) -> JudgeAnswer:
        ids = [token for token in row if token != NO_TOKEN]
        is_ended = bool(ids) and ids[-1] in self._end_ids
        text = self._tokenizer.decode(ids[:-1] if is_ended else ids)
        return JudgeAnswer(opened + text, is_cut=not is_ended)

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        added = self._settings.cost_of(len(tokens.ids))
        last = len(tokens.ids) - 1
        return ModelInput(tokens.ids, (Span(last, last + 1),), truncated, max_generated=added)

    def _render(self, sample: Sample) -> Rendered:
        if self._spec.defaults:
            sample = replace(sample, fields={**self._spec.defaults, **sample.fields})
        as_text = self._with_prompt_as_text(sample)
        if not self._turns:
            return self._texts.render(as_text)
        parts = [_part(turn, sample, as_text) for turn in self._turns]
        messages = [message for part in parts for message in part.messages]
        if [message.role for message in messages] == ["user"] and parts[0].rendered is not None:
            return self._texts.render_question(parts[0].rendered, begins_turn=True)
        chat = self._texts.render_messages(
            messages, len(messages) - 1, tools=sample.tools, add_generation_prompt=True
        )
        return replace(_located(chat.text, parts), omitted=chat.omitted)

    def _with_prompt_as_text(self, sample: Sample) -> Sample:
        """Write a prompt of several messages as the recipe says, where a template inserts it."""
        prompt = sample.prompt
        if not _is_of_turns(prompt, "user") or isinstance(prompt, str):
            self._require_one_text(sample.completion, "assistant", "completion")
            return sample
        if self._prompt_turns is not None:
            as_text = self._prompt_turns.render(prompt, len(prompt)).text
            return self._with_prompt_as_text(replace(sample, prompt=as_text))
        self._require_one_text(prompt, "user", "prompt")
        return sample

    def _require_one_text(self, content: _Content, role: str, name: str) -> None:
        """Raise `SampleError` if a template would lose roles that the recipe does not give up."""
        is_inserted = any(f"{{{name}" in template for template in self._spec.templates)
        if self._spec.chats == "join" or not is_inserted or not _is_of_turns(content, role):
            return
        also = "`prompt_turns = { user = ..., assistant = ... }` or " if name == "prompt" else ""
        raise SampleError(
            "invalid_sample",
            f"the judge's question is a text, in which the {len(content)} messages of the {name} "
            f"would lose their roles: send them as one text, or write {also}"
            f'`messages = [..., "{{{name}}}"]` in the recipe',
        )


def _is_of_turns(content: _Content, role: str) -> bool:
    """Say whether a prompt or completion is more than one message of its usual role."""
    return not isinstance(content, str) and [one.role for one in content] not in ([role], [])


class _Part(NamedTuple):
    """Messages of a question: the sample's own, or one that is ``rendered`` by a template."""

    messages: tuple[Message, ...]
    rendered: Rendered | None = None
    is_prompt: bool = False

    def within(self, text: str, place: Span) -> Rendered:
        """Return the spans of prompt and completion in a chat that has this part at ``place``."""
        if self.rendered is not None:
            lead = len(self.rendered.text) - len(self.rendered.text.lstrip())
            return self.rendered.within(text, place.start - lead)
        nowhere = Span(place.start, place.start)
        prompt, completion = (place, nowhere) if self.is_prompt else (nowhere, place)
        return Rendered(text, prompt, completion)


#: A message of a question: the sample's own messages, or a role with a template.
_Turn = str | tuple[str, TextTemplate]


def _turns_of(spec: JudgeSpec, fields: Mapping[str, FieldPattern]) -> list[_Turn]:
    """Return the messages of a recipe's question; none for a text without a chat template."""
    turns = spec.messages or ()
    if spec.rubric is not None:
        turns = (JudgeMessage(role="user", content=spec.rubric),)
    return [
        turn if isinstance(turn, str) else (turn.role, TextTemplate(turn.content, fields=fields))
        for turn in turns
    ]


def _part(turn: _Turn, sample: Sample, as_text: Sample) -> _Part:
    if isinstance(turn, str):
        messages, num_prompt = conversation(sample), num_prompt_messages(sample)
        is_prompt = turn == "{prompt}"
        own = messages[:num_prompt] if is_prompt else messages[num_prompt:]
        return _Part(own, is_prompt=is_prompt)
    role, template = turn
    rendered = template.render(as_text)
    return _Part((Message(role, rendered.text),), rendered)


def _located(text: str, parts: Sequence[_Part]) -> Rendered:
    """Return a chat with the spans of prompt and completion.

    They are empty where a message is not found; truncation of a long chat then fails the sample.
    """
    located: list[Rendered] = []
    end = 0
    for part in parts:
        places: list[Span] = []
        for message in part.messages:
            content = message.content.strip()
            start = text.find(content, end)
            if start < 0:
                return Rendered(text, Span(0, 0), Span(0, 0))
            end = start + len(content)
            places.append(Span(start, end))
        if places:
            located.append(part.within(text, Span(places[0].start, end)))
    prompts = [span for one in located for span in (*one.copies, one.prompt)]
    *copies, prompt = [span for span in prompts if span.start < span.end] or [Span(0, 0)]
    completions = [one.completion for one in located]
    completion = max(completions, key=lambda span: span.end - span.start)
    return Rendered(text, prompt, completion, copies=tuple(copies))


def _question_limit(spec: JudgeSpec, weights: LoadedCheckpoint) -> int:
    """Return the maximum number of tokens of a question, which leaves room for the answer."""
    room = num_positions(weights.network) - spec.max_new_tokens
    limit = max_tokens(spec, weights)
    if room < _MIN_QUESTION or (spec.max_tokens is not None and limit > room):
        raise RecipeError(
            f"{spec.checkpoint} has {room + spec.max_new_tokens} positions, of which an answer may "
            f"take {spec.max_new_tokens} (max_new_tokens) and the question "
            f"{spec.max_tokens or 'the rest'} (max_tokens): lower one"
        )
    return min(limit, room)
