"""TextPipeline: renders, tokenizes and truncates samples as one text each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.chat_templates import ChatFormat
from alarm_models.preprocessing.read_text import ReadText, dropped_tokens
from alarm_models.preprocessing.templates import (
    FieldPattern,
    Rendered,
    TextTemplate,
    TypedSpan,
    conversation,
    num_prompt_messages,
    with_prefill_as_completion,
    without_prefill,
)
from alarm_models.preprocessing.truncation import TokenIds, fit
from alarm_models.preprocessing.turns import Turns
from alarm_models.recipe.specs import (
    ClassifierSpec,
    MultiObjectiveSpec,
    SequenceSpec,
    TextSpec,
    TurnsSpec,
)
from alarm_models.reward_models.base import LoadedCheckpoint, Prepared, max_tokens
from alarm_models.types import Message, Sample, Score, Span

__all__ = ["TextPipeline", "pooling_of", "pooling_positions", "turns_of"]

_READ_BY = {
    Pooling.FIRST: "the first token",
    Pooling.MEAN: "the mean of all tokens",
    Pooling.LAST_NOT_PADDING: "the last token",
}


class TextPipeline:
    """Converts samples to the tokens of one text each.

    The text is rendered by a template, by the recipe's turns or by a chat template; with ``pair``
    there are two texts, which the tokenizer joins.
    """

    def __init__(
        self,
        spec: TextSpec,
        template: str,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
    ) -> None:
        self._spec = spec
        self._tokenizer = weights.tokenizer
        self._max_tokens = max_tokens(spec, weights)
        self._template: TextTemplate | None = None
        self._turns = None if spec.turns is None else turns_of(spec.turns)
        self._chat = ChatFormat(spec.chat_template, spec.chat_arguments)
        self._is_pair = isinstance(spec, ClassifierSpec) and spec.pair
        if template != "chat":
            self._template = TextTemplate(template, fields=fields)
            if "completion" not in self._template.names:
                raise RecipeError(f"template {template!r} does not name {{completion}}")
        elif self._turns is None and not self._is_pair:
            weights.tokenizer.require_chat_template(spec.checkpoint, self._chat, asks=spec.asks)
        is_chat = template == "chat" and self._turns is None and not self._is_pair
        named = spec.special_tokens
        self._with_special = not is_chat if named is None else named

    def render(self, sample: Sample, *, add_generation_prompt: bool = False) -> Rendered:
        """Render a sample; raise `SampleError` if the template rejects it.

        The span of a completion that continues a message of the prompt begins after that message.
        """
        rendered = self._rendered(sample, add_generation_prompt=add_generation_prompt)
        return without_prefill(rendered, sample.prefill)

    def _rendered(self, sample: Sample, *, add_generation_prompt: bool) -> Rendered:
        if self._is_pair or self._template is not None:
            sample = with_prefill_as_completion(sample)
        if self._is_pair:
            return self._two_texts(sample)
        if self._template is not None:
            self.require_renderable(sample)
            return self._template.render(self._with_prompt_as_text(sample))
        return self.render_messages(
            conversation(sample),
            num_prompt_messages(sample),
            tools=sample.tools,
            add_generation_prompt=add_generation_prompt,
        )

    def question(self, sample: Sample) -> str:
        """Return the field `question` if the template names it, otherwise nothing."""
        return "" if self._template is None else self._template.question(sample)

    def render_messages(
        self,
        messages: Sequence[Message],
        num_prompt: int,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """Render messages as a chat; the first ``num_prompt`` of them are the prompt."""
        if self._turns is not None:
            return self._turns.render(
                messages, num_prompt, add_generation_prompt=add_generation_prompt
            )
        return self._tokenizer.render_chat(
            messages,
            num_prompt=num_prompt,
            tools=tools,
            tags=self._spec.think_tags,
            add_generation_prompt=add_generation_prompt,
            chat=self._chat,
        )

    def render_question(self, question: Rendered, *, begins_turn: bool) -> Rendered:
        """Render a text as a user message of a chat, with or without the start of the next turn."""
        if self._turns is None:
            return self._tokenizer.render_turn(
                question, add_generation_prompt=begins_turn, chat=self._chat
            )
        message = Message("user", question.text)
        turn = self._turns.render([message], 1, add_generation_prompt=begins_turn)
        return question.within(turn.text, turn.prompt.start)

    def require_renderable(self, sample: Sample) -> None:
        """Raise `SampleError` for messages whose roles a text template would lose, if so set."""
        if self._spec.chats == "join" or self._turns is not None:
            return
        for content, role in ((sample.prompt, "user"), (sample.completion, "assistant")):
            if not isinstance(content, str) and [one.role for one in content] not in ([role], []):
                raise SampleError(
                    "invalid_sample",
                    f"the model's template is a text without turns: {len(content)} messages with "
                    "their roles cannot be written in it. Send them as one text, or write "
                    "`turns = { user = ..., assistant = ... }` in the recipe",
                )

    def _two_texts(self, sample: Sample) -> Rendered:
        prompt = self._with_prompt_as_text(sample).prompt
        if not isinstance(prompt, str):
            if len(prompt) > 1 or any(message.role != "user" for message in prompt):
                raise SampleError(
                    "invalid_sample",
                    "the model reads one question and one answer: a prompt of several messages "
                    "requires `turns` in the recipe to render it",
                )
            prompt = sample.prompt_text
        answer = sample.completion_text
        return Rendered(prompt, Span(0, len(prompt)), Span(0, len(answer)), pair=answer)

    def _with_prompt_as_text(self, sample: Sample) -> Sample:
        """Render the messages of the prompt with the recipe's turns."""
        if self._turns is None or isinstance(sample.prompt, str):
            return sample
        written = self._turns.render(sample.prompt, len(sample.prompt)).text
        return replace(sample, prompt=written)

    def prepare(
        self,
        samples: Sequence[Sample],
        render: Callable[[Sample], Rendered | Score],
        features: Callable[[TokenIds, bool], ModelInput],
    ) -> list[Prepared]:
        """Render, tokenize and truncate samples, and convert them with ``features``.

        ``features`` receives the tokens and whether any were truncated. Both callbacks may raise
        `SampleError`. If ``render`` returns a score, no forward pass is needed.
        """
        rendered: dict[int, Rendered] = {}
        prepared: dict[int, Prepared] = {}
        for index, sample in enumerate(samples):
            check_cancelled()
            try:
                made = render(sample)
                if isinstance(made, Rendered):
                    self._tokenizer.require_tokenizable(made)
            except SampleError as error:
                prepared[index] = error
            else:
                if isinstance(made, Score):
                    prepared[index] = made
                else:
                    rendered[index] = made.ended(self._spec.strip, self._spec.suffix)
        encoded = self._tokenizer.encode(
            list(rendered.values()),
            with_special=self._with_special,
            may_repeat=self._spec.special_tokens is True,
            max_tokens=self._max_tokens,
            truncation=self._spec.truncation,
        )
        for (index, text), tokens in zip(rendered.items(), encoded, strict=True):
            try:
                made_of = features(*self._fit(tokens))
                prepared[index] = (
                    replace(made_of, omitted=text.omitted) if text.omitted else made_of
                )
            except SampleError as error:
                prepared[index] = error
        return [prepared[index] for index in range(len(samples))]

    def read_texts(
        self, sample: Sample, render: Callable[[Sample], Rendered | Score]
    ) -> tuple[ReadText, ...]:
        """Return the text of a sample as the model reads it; ``render`` is as in `prepare`.

        Its tokens are found as in `prepare`. Raises `SampleError` as that does.
        """
        made = render(sample)
        if isinstance(made, Score):
            return ()
        text = made.ended(self._spec.strip, self._spec.suffix)
        # The tokenizer marks the tokens that overlap the completion.
        marked = replace(text, typed_spans=(TypedSpan(*text.completion, 1),))
        (tokens,) = self._tokenizer.encode(
            [marked],
            with_special=self._with_special,
            may_repeat=self._spec.special_tokens is True,
            truncation=self._spec.truncation,
        )
        dropped = dropped_tokens(tokens, self._max_tokens, self._spec.truncation)
        return (ReadText(tokens.ids, _completion_tokens(tokens, text), dropped),)

    def _fit(self, tokens: TokenIds) -> tuple[TokenIds, bool]:
        if not tokens.ids:
            raise SampleError("invalid_sample", "prompt and completion are empty: nothing to read")
        return fit(tokens, self._max_tokens, self._spec.truncation)


def _completion_tokens(tokens: TokenIds, text: Rendered) -> Span | None:
    """Return the tokens of the completion: those that are marked, or the second text of a pair."""
    if text.pair is not None:
        return Span(tokens.prompt.end, len(tokens.ids) - tokens.num_suffix)
    marked = [index for index, mark in enumerate(tokens.token_type_ids) if mark]
    return Span(marked[0], marked[-1] + 1) if marked else None


def turns_of(spec: TurnsSpec) -> Turns:
    """Return the turns that a recipe writes."""
    texts = {role: getattr(spec, role) for role in ("system", "user", "assistant", "tool")}
    by_role = {role: text for role, text in texts.items() if text is not None}
    return Turns(by_role, spec.start, spec.separator, spec.generation)


def pooling_of(spec: SequenceSpec | MultiObjectiveSpec, weights: LoadedCheckpoint) -> Pooling:
    """Return where a score is read: where the checkpoint's own classifier reads, or the recipe's.

    Raises `RecipeError` if the recipe asks for another ``pooling`` than that classifier's: it would
    have no effect.
    """
    own, wanted = weights.network.pooling, Pooling(spec.pooling)
    if own is None:
        return wanted
    same = own is wanted or (own, wanted) == (Pooling.LAST_NOT_PADDING, Pooling.LAST)
    if "pooling" in spec.model_fields_set and own is not Pooling.OWN and not same:
        raise RecipeError(
            f'pooling = "{spec.pooling}" has no effect on {spec.checkpoint}: its own classifier '
            f'reads {_READ_BY[own]}. Name the head (`head`, for example "score") to have it read '
            "the tokens of `pooling`, or leave `pooling` out"
        )
    return own


def pooling_positions(ids: Sequence[int], pooling: Pooling, pad: int | None) -> Span:
    """Return the tokens that a whole-sequence score is read from."""
    match pooling:
        case Pooling.FIRST | Pooling.OWN:
            return Span(0, 1)
        case Pooling.MEAN:
            return Span(0, len(ids))
        case Pooling.LAST:
            return Span(len(ids) - 1, len(ids))
        case Pooling.LAST_NOT_PADDING:
            index = next((i for i in reversed(range(len(ids))) if ids[i] != pad), 0)
            return Span(index, index + 1)
