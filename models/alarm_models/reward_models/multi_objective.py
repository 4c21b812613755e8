"""Kind `multi-objective`: several named outputs for a whole completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import base_with_gate, base_with_weights, sequence_classifier
from alarm_models.modeling.network import Network
from alarm_models.modeling.padded import pad_token_id
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import MultiObjectiveSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    require_finite,
)
from alarm_models.reward_models.prefixes import PrefixPipeline, read_with_prefixes
from alarm_models.reward_models.registry import CheckpointFiles, head_or, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline, pooling_of, pooling_positions
from alarm_models.types import Sample, Score, Span

__all__ = ["MultiObjectiveModel"]


def _load_network(spec: MultiObjectiveSpec, files: CheckpointFiles) -> Network:
    if spec.head is not None and spec.gate_at is not None:
        return base_with_gate(files.base(), files.source, spec.head)
    if spec.head is not None and spec.gate is not None:
        return base_with_weights(files.base(), files.source, spec.head, spec.gate)
    return head_or(sequence_classifier)(spec, files)


@neural_kind(MultiObjectiveSpec, load_network=_load_network)
class MultiObjectiveModel(NeuralRewardModel):
    """A head with several outputs, each of which an aspect may use.

    The score is their sum weighted by the gate (ArmoRM and QRM, with ``gate_at``; URM, with
    ``gate``) or by the recipe's ``weights``, else None.
    """

    def __init__(
        self,
        spec: MultiObjectiveSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        self._spec = spec
        self._texts = TextPipeline(spec, spec.template, weights, fields)
        self._pooling = pooling_of(spec, weights)
        self._gate = () if spec.gate_at is None else weights.tokenizer.ids(spec.gate_at)
        num_objectives = weights.network.num_outputs // (3 if self._gate else 1)
        num_objectives -= spec.gate is not None  # its last output is the score
        self._names = spec.objectives or weights.label_names
        if len(self._names) != num_objectives:
            raise CheckpointError(
                f"{spec.checkpoint} has {num_objectives} outputs, but got "
                f"{len(self._names)} names {list(self._names)}: list them in order in `objectives`"
            )
        unknown = sorted(set(spec.weights) - set(self._names))
        if unknown:
            raise RecipeError(f"weights names {unknown}; the objectives are {list(self._names)}")

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Render, tokenize and truncate, with prefixes for samples that request them."""
        if any(sample.prefix_segmenter for sample in samples):
            render = self._texts.render
            return PrefixPipeline(self._texts, render, self._features, self.cost).prepare(samples)
        return self._texts.prepare(samples, self._texts.render, self._features)

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        return self._texts.read_texts(sample, self._texts.render)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return all outputs, and the score computed from them."""
        if features.further_sequences:
            return read_with_prefixes(features, outputs, self._read)
        return self._read(features, outputs)

    def _read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        if self._gate:
            rewards, mixed, _ = outputs[1].chunk(3)
            *_, gate = outputs[0].chunk(3)
            value: float | None = float(gate @ mixed)
        elif self._spec.gate is not None:
            rewards, value = outputs[0][:-1], float(outputs[0][-1])
        else:
            rewards = self._activated(outputs[0])
            value = self._weighed(rewards)
        values = rewards.tolist()
        require_finite([*values, *(() if value is None else (value,))])
        named = dict(zip(self._names, values, strict=True))
        return Score(value, None, features.num_tokens, features.truncated, outputs=named)

    def _activated(self, rewards: torch.Tensor) -> torch.Tensor:
        match self._spec.activation:
            case "sigmoid":
                return rewards.sigmoid()
            case "softmax":
                return rewards.softmax(-1)
            case "none":
                return rewards

    def _weighed(self, rewards: torch.Tensor) -> float | None:
        if not self._spec.weights:
            return None
        weights = [self._spec.weights.get(name, 0.0) for name in self._names]
        return float(rewards @ rewards.new_tensor(weights))

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        read = pooling_positions(tokens.ids, self._pooling, pad_token_id(self.config))
        reads = (self._gate_read(tokens), read) if self._gate else (read,)
        return ModelInput(tokens.ids, reads, truncated, token_type_ids=tokens.token_type_ids)

    def _gate_read(self, tokens: TokenIds) -> Span:
        """Find the end of the prompt: the first token of the pattern, outside the completion.

        ArmoRM's code uses the last occurrence of the pattern, which is the same unless a completion
        contains the pattern.
        """
        found = [
            at
            for at in range(len(tokens.ids) - len(self._gate) + 1)
            if tokens.ids[at : at + len(self._gate)] == self._gate
        ]
        after = [at for at in found if at >= tokens.prompt.end > 0]
        if not found:
            raise SampleError(
                "too_long" if tokens.prompt.end == 0 else "invalid_sample",
                f"gate_at {self._spec.gate_at!r} is not in the text that the model reads",
            )
        at = after[0] if after else found[-1]
        return Span(at, at + 1)
