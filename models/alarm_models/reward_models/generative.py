"""Kind `generative`: a causal model's score of the next token, or of yes against no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import token_scorer
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import GenerativeSpec
from alarm_models.reward_models.answer_tokens import require_in_vocabulary, scored_tokens
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    require_finite,
)
from alarm_models.reward_models.registry import CheckpointFiles, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline
from alarm_models.types import Sample, Score, Span

__all__ = ["GenerativeModel"]


def _load_network(spec: GenerativeSpec, files: CheckpointFiles) -> Network:
    return token_scorer(files.source, scored_tokens(spec, files.tokenizer))


@neural_kind(GenerativeSpec, load_network=_load_network)
class GenerativeModel(NeuralRewardModel):
    """A causal language model, scored by its next token after the text.

    The score is the token's logit (token 0 for Llama-3.1-Nemotron-70B-Reward), its log
    probability, or with ``negative`` the margin: the log-odds of yes against no.
    """

    def __init__(
        self,
        spec: GenerativeSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        require_in_vocabulary(scored_tokens(spec, weights.tokenizer), weights.network)
        self._spec = spec
        self._texts = TextPipeline(spec, spec.template, weights, fields)
        self._ask = None if spec.ask is None else TextTemplate(spec.ask, fields=fields)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render, tokenize and truncate."""
        return self._texts.prepare(samples, self._render, self._features)

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        return self._texts.read_texts(sample, self._render)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return the measure of the recipe from the logits of the next token."""
        positive, *negative, total = outputs[0].tolist()
        value = positive
        if negative:
            value -= negative[0]
        elif self._spec.measure == "logprob":
            value -= total
        require_finite([value])
        if self._spec.activation == "sigmoid":
            value = sigmoid(value)
        return Score(value, None, features.num_tokens, features.truncated)

    def _render(self, sample: Sample) -> Rendered:
        if self._ask is not None:
            self._texts.require_renderable(sample)
            question = self._ask.render(sample)
            return self._texts.render_question(question, begins_turn=self._spec.begins_turn)
        return self._texts.render(sample, add_generation_prompt=self._spec.begins_turn)

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        last = len(tokens.ids) - 1
        return ModelInput(tokens.ids, (Span(last, last + 1),), truncated)
