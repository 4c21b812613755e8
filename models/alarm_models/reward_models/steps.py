"""Kind `steps`: the probability that each step of a solution is right, read at its step token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from alarm_models.combination.rules import sigmoid
from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import token_classifier
from alarm_models.preprocessing.segmentation import SEGMENTERS
from alarm_models.preprocessing.templates import FieldPattern, Rendered
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import StepsSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    require_finite,
    require_outputs,
)
from alarm_models.reward_models.registry import head_or, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline
from alarm_models.types import Sample, Score, SegmentScore, Span

__all__ = ["StepsModel"]

_REDUCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda values: sum(values) / len(values),
    "product": math.prod,
    "last": lambda values: values[-1],
}


@neural_kind(StepsSpec, load_network=head_or(token_classifier))
class StepsModel(NeuralRewardModel):
    """A process reward model over ``prompt step <step token> step <step token> ...``.

    This is the form of Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv 2501.07301). Step tokens are
    found by where they were put, so one that occurs in a text shifts nothing.
    """

    def __init__(
        self,
        spec: StepsSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        require_outputs(weights.network, 2, "kind `steps`")
        self._spec = spec
        self._texts = TextPipeline(spec, spec.template, weights, fields)
        self._step_id = weights.tokenizer.only_id(spec.step_token)
        self._labels = spec.labels or weights.label_names or ("bad", "good")
        wanted = spec.positive_label or self._labels[1]
        if wanted not in self._labels:
            raise RecipeError(f"positive_label {wanted!r} is none of {list(self._labels)}")
        self._positive = self._labels.index(wanted)

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Find the steps, put a step token after each, tokenise and truncate."""
        prepared = self._texts.prepare(samples, self._render, self._features)
        return [
            replace(one, segments=self._steps(sample)) if isinstance(one, ModelInput) else one
            for sample, one in zip(samples, prepared, strict=True)
        ]

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the positive label's probability a step; the recipe's reduction makes the score."""
        margins = outputs[:, self._positive] - outputs[:, 1 - self._positive]
        grades = [sigmoid(margin) for margin in margins.tolist()]
        require_finite(grades)
        read, unread = features.segments[: len(grades)], features.segments[len(grades) :]
        scores = [self._step_score(*one) for one in zip(read, grades, strict=True)]
        scores += [SegmentScore(span, None, None, None) for span in unread]
        value = _REDUCTIONS[self._spec.reduction](grades)
        return Score(value, tuple(scores), features.num_tokens, features.truncated)

    def _step_score(self, span: Span, grade: float) -> SegmentScore:
        label = self._labels[self._positive if grade > 0.5 else 1 - self._positive]
        return SegmentScore(span, label, grade, None)

    def _steps(self, sample: Sample) -> tuple[Span, ...]:
        given = sample.segments.get(self._spec.segmenter)
        if given is not None:
            return tuple(given)
        return SEGMENTERS[self._spec.segmenter](sample.completion_text)

    def _render(self, sample: Sample) -> Rendered | Score:
        steps = self._steps(sample)
        if not steps:
            return Score(None, (), 0, False)
        joined, places = "", []
        for start, end in steps:
            step = sample.completion_text[start:end]
            # No white space before the first: chat templates may drop it.
            joined += step if joined else step.lstrip()
            places.append(len(joined))
            joined += self._spec.step_token
        text = self._texts.render(replace(sample, completion=joined))
        at = text.completion.start
        if text.text[at : at + len(joined)] != joined:
            raise SampleError("invalid_sample", "the template changes the completion's steps")
        return replace(text, anchor_positions=tuple(place + at for place in places))

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        if not tokens.anchor_positions:
            raise SampleError("too_long", "truncation leaves none of the completion's steps")
        if any(tokens.ids[place] != self._step_id for place in tokens.anchor_positions):
            raise SampleError(
                "invalid_sample",
                f"step token {self._spec.step_token!r} merges with the text around it",
            )
        reads = tuple(Span(place, place + 1) for place in tokens.anchor_positions)
        return ModelInput(tokens.ids, reads, truncated)
