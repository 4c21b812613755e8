"""Kind `sequence`: one score for a whole completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import sequence_classifier
from alarm_models.modeling.padded import pad_token_id
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.segmentation import word_types
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TypedSpan
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import SequenceSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    require_finite,
    require_outputs,
    require_token_types,
)
from alarm_models.reward_models.prefixes import PrefixPipeline, read_with_prefixes
from alarm_models.reward_models.registry import head_or, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline, pooling_of, pooling_positions
from alarm_models.types import Sample, Score

__all__ = ["SequenceModel"]


@neural_kind(SequenceSpec, load_network=head_or(sequence_classifier))
class SequenceModel(NeuralRewardModel):
    """A one-logit classifier, or a base model with a named head, over prompt and completion.

    A classifier on a decoder is read at its last token that is not the configured padding, as
    in transformers; a named head is read at the tokens of the recipe's ``pooling``.
    """

    def __init__(
        self,
        spec: SequenceSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        require_outputs(weights.network, 1, "kind `sequence`")
        require_token_types(spec, weights.network)
        self._spec = spec
        self._normalization = weights.normalization
        self._texts = TextPipeline(spec, spec.template, weights, fields)
        self._pooling = pooling_of(spec, weights)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render, tokenize and truncate, with prefixes for samples that request them."""
        if any(sample.prefix_segmenter for sample in samples):
            pipeline = PrefixPipeline(self._texts, self._render, self._features, self.cost)
            return pipeline.prepare(samples)
        return self._texts.prepare(samples, self._render, self._features)

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        return self._texts.read_texts(sample, self._render)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return the logit, with the normalization and activation of the spec, if any."""
        if features.further_sequences:
            return read_with_prefixes(features, outputs, self._read)
        return self._read(features, outputs)

    def _read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        value = float(outputs.item())
        require_finite([value])
        if self._normalization is not None:
            value = (value - self._normalization.mean) / self._normalization.std
        if self._spec.activation == "sigmoid":
            value = sigmoid(value)
        return Score(value, None, features.num_tokens, features.truncated)

    def _render(self, sample: Sample) -> Rendered:
        text, marking = self._texts.render(sample), self._spec.mark_copied
        if not marking or self._spec.template == "chat":
            return text
        question = self._texts.question(sample) if marking == "support" else ""
        words = word_types(sample.prompt_text, sample.completion_text, marking, question)
        shift = text.completion.start
        typed = (TypedSpan(start + shift, end + shift, kind) for start, end, kind in words)
        return replace(text, typed_spans=tuple(typed))

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        read = pooling_positions(tokens.ids, self._pooling, pad_token_id(self.config))
        return ModelInput(tokens.ids, (read,), truncated, token_type_ids=tokens.token_type_ids)
