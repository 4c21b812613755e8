"""Samples as one text each: rendered, tokenised and shortened for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.heads import Pooling
from alarm_models.modeling.inputs import ModelInput
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate, conversation
from alarm_models.preprocessing.truncation import TokenIds, fit
from alarm_models.recipe.specs import NeuralSpec
from alarm_models.reward_models.base import LoadedCheckpoint, Prepared, max_tokens
from alarm_models.types import Sample, Score, Span

__all__ = ["TextPipeline", "pooling_positions"]


class TextPipeline:
    """Turns samples into the tokens of one text each, by a template or the tokenizer's own chat."""

    def __init__(
        self,
        spec: NeuralSpec,
        template: str,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
    ) -> None:
        self._spec = spec
        self._tokenizer = weights.tokenizer
        self._max_tokens = max_tokens(spec, weights)
        self._template: TextTemplate | None = None
        if template != "chat":
            self._template = TextTemplate(template, fields=fields)
            if "completion" not in self._template.names:
                raise RecipeError(f"template {template!r} does not name {{completion}}")
        else:
            weights.tokenizer.require_chat_template(spec.checkpoint)

    def render(self, sample: Sample, *, add_generation_prompt: bool = False) -> Rendered:
        """Put a sample into its text; raise `SampleError` where the template refuses it."""
        if self._template is not None:
            return self._template.render(sample)
        return self._tokenizer.render_chat(
            conversation(sample), add_generation_prompt=add_generation_prompt
        )

    def prepare(
        self,
        samples: Sequence[Sample],
        render: Callable[[Sample], Rendered | Score],
        features: Callable[[TokenIds, bool], ModelInput],
    ) -> list[Prepared]:
        """Tokenise and shorten what ``render`` makes of samples, and hand it to ``features``.

        ``features`` takes the tokens and whether any were dropped; it, as ``render``, may raise
        `SampleError`. A score that ``render`` returns needs no device.
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
                    rendered[index] = made
        encoded = self._tokenizer.encode(
            list(rendered.values()),
            with_special=self._template is not None,
            max_tokens=self._max_tokens,
            truncation=self._spec.truncation,
        )
        for index, tokens in zip(rendered, encoded, strict=True):
            try:
                prepared[index] = features(*self._fit(tokens))
            except SampleError as error:
                prepared[index] = error
        return [prepared[index] for index in range(len(samples))]

    def _fit(self, tokens: TokenIds) -> tuple[TokenIds, bool]:
        if not tokens.ids:
            raise SampleError("invalid_sample", "prompt and completion are empty: nothing to read")
        return fit(tokens, self._max_tokens, self._spec.truncation)


def pooling_positions(ids: Sequence[int], pooling: Pooling, pad: int | None) -> Span:
    """Return which tokens a whole-sequence score is read from."""
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
