"""Kind `sequence`: one score for a whole completion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from alarm_models.copying import copied_words
from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.features import BatchCost, Features
from alarm_models.heads import Pooling
from alarm_models.rewards.base import Prepared, Weights, max_tokens, require_finite, require_outputs
from alarm_models.sample import Sample, Score, Span
from alarm_models.specs import SequenceSpec
from alarm_models.template import FieldPattern, Rendered, TextTemplate, conversation
from alarm_models.truncation import TokenIds, fit

__all__ = ["SequenceModel"]


class SequenceModel:
    """A one-logit classifier, or a base model with a named linear head, over prompt and completion.

    A classifier on a decoder is read at its last token that is not the configured padding, as
    transformers reads it; a named head where the recipe's ``pooling`` says.
    """

    def __init__(
        self,
        spec: SequenceSpec,
        weights: Weights,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        require_outputs(weights.network, 1, "kind `sequence`")
        self.fingerprint = fingerprint
        self.limit: int | None = max_tokens(spec, weights)
        self._max_tokens = self.limit
        self._spec = spec
        self._weights = weights
        self._template: TextTemplate | None = None
        if spec.template != "chat":
            self._template = TextTemplate(spec.template, fields=fields)
            if "completion" not in self._template.names:
                raise RecipeError(f"template {spec.template!r} does not name {{completion}}")
        elif not weights.tokenizer.has_chat_template:
            raise CheckpointError(
                f"{spec.checkpoint} brings no chat template; give a text in `template`"
            )

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render, tokenise and shorten."""
        rendered: dict[int, Rendered] = {}
        prepared: dict[int, Prepared] = {}
        for index, sample in enumerate(samples):
            try:
                rendered[index] = self._render(sample)
            except SampleError as error:
                prepared[index] = error
        encoded = self._weights.tokenizer.encode(
            list(rendered.values()), with_special=self._template is not None
        )
        for index, tokens in zip(rendered, encoded, strict=True):
            prepared[index] = self._features(tokens)
        return [prepared[index] for index in range(len(samples))]

    @property
    def cost(self) -> BatchCost:
        """What a batch costs the network."""
        return self._weights.network.cost

    def num_computed(self, batch: Sequence[Features]) -> list[int]:
        """Return the tokens that each sample adds to a batch's work, padding not counted."""
        return self._weights.network.num_computed(batch)

    def forward(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one batch."""
        return self._weights.network.outputs(batch)

    def read(self, features: Features, outputs: torch.Tensor) -> Score:
        """Read the logit, raw unless the recipe names an activation."""
        value = float(outputs.item())
        require_finite([value])
        if self._spec.activation == "sigmoid":
            value = 1 / (1 + math.exp(-value))
        return Score(value, None, features.num_tokens, features.truncated)

    def _render(self, sample: Sample) -> Rendered:
        if self._template is not None:
            return self._marked(self._template.render(sample), sample)
        try:
            return self._weights.tokenizer.render_chat(conversation(sample))
        except Exception as error:  # the template is the checkpoint's own program: it may raise any
            raise SampleError(
                "invalid_sample", f"the chat template refuses these messages: {error}"
            ) from error

    def _marked(self, text: Rendered, sample: Sample) -> Rendered:
        if not self._spec.mark_copied:
            return text
        copied = copied_words(sample.prompt_text, sample.completion_text)
        shift = text.completion.start
        return replace(text, marked=tuple(Span(a + shift, b + shift) for a, b in copied))

    def _features(self, tokens: TokenIds) -> Features | SampleError:
        if not tokens.ids:
            return SampleError("invalid_sample", "prompt and completion are empty: nothing to read")
        try:
            tokens, truncated = fit(tokens, self._max_tokens, self._spec.truncation)
        except SampleError as error:
            return error
        reads = (self._read_at(tokens.ids),)
        return Features(tokens.ids, reads, truncated, types=tokens.types)

    def _read_at(self, ids: tuple[int, ...]) -> Span:
        match self._weights.network.pooling or Pooling(self._spec.pooling):
            case Pooling.FIRST | Pooling.OWN:
                return Span(0, 1)
            case Pooling.MEAN:
                return Span(0, len(ids))
            case Pooling.LAST:
                return Span(len(ids) - 1, len(ids))
            case Pooling.LAST_NOT_PADDING:
                pad = self._weights.network.config.pad_token_id
                index = next((i for i in reversed(range(len(ids))) if ids[i] != pad), 0)
                return Span(index, index + 1)
