"""Kind `steps`: the probability that each step of a solution is right, read at its step token."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from alarm_models.combination.all_rules import sigmoid
from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import token_classifier, token_scorer
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.segmentation import find_segments
from alarm_models.preprocessing.templates import FieldPattern, Rendered
from alarm_models.preprocessing.truncation import TokenIds
from alarm_models.recipe.specs import StepsSpec
from alarm_models.reward_models.answer_tokens import require_in_vocabulary, scored_tokens
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    require_finite,
    require_outputs,
)
from alarm_models.reward_models.registry import CheckpointFiles, head_or, neural_kind
from alarm_models.reward_models.text_pipeline import TextPipeline
from alarm_models.types import Message, Sample, Score, SegmentScore, Span

__all__ = ["StepsModel"]

#: Placeholder of an answer while a chat is rendered: a private-use character.
_ANSWER = "\uf8ff"

_REDUCTIONS: Mapping[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda values: sum(values) / len(values),
    "product": math.prod,
    "last": lambda values: values[-1],
}


def _load_network(spec: StepsSpec, files: CheckpointFiles) -> Network:
    if spec.positive is not None:
        return token_scorer(files.source, scored_tokens(spec, files.tokenizer))
    return head_or(token_classifier)(spec, files)


@neural_kind(StepsSpec, load_network=_load_network)
class StepsModel(NeuralRewardModel):
    """A process reward model over ``prompt step <step token> step <step token> ...``.

    This is the form of Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv 2501.07301), whose head has two
    logits; Skywork-o1-Open-PRM's has one. For a causal model the logits of two tokens are compared:
    at the step token (Math-Shepherd, Wang et al. 2023, arXiv 2312.08935) or, with ``step_answer``,
    before the answer to each step's turn (RLHFlow). Step tokens are located by the positions at
    which they were inserted, so a step token inside a text has no effect.
    """

    def __init__(
        self,
        spec: StepsSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        is_causal = spec.positive is not None
        if is_causal:
            require_in_vocabulary(scored_tokens(spec, weights.tokenizer), weights.network)
        elif weights.network.num_outputs != 1:
            require_outputs(weights.network, 2, "kind `steps`")
        self._has_pair = is_causal or weights.network.num_outputs == 2
        self._spec = spec
        self._texts = TextPipeline(spec, spec.template, weights, fields)
        self._step_id = weights.tokenizer.only_id(spec.read_token)
        named = () if is_causal or len(weights.label_names) != 2 else weights.label_names
        self._labels = spec.labels or named or ("bad", "good")
        #: Output indices of the two labels; in a causal model the positive token comes first.
        self._outputs = (1, 0) if is_causal else (0, 1)
        wanted = spec.positive_label or self._labels[1]
        if wanted not in self._labels:
            raise RecipeError(f"positive_label {wanted!r} is not one of {list(self._labels)}")
        self._positive = self._labels.index(wanted)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Find the steps, insert a step token after each, tokenize and truncate."""
        prepared = self._texts.prepare(samples, self._render, self._features)
        return [
            replace(one, segments=find_segments(sample, self._spec.segmenter))
            if isinstance(one, ModelInput)
            else one
            for sample, one in zip(samples, prepared, strict=True)
        ]

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        return self._texts.read_texts(sample, self._render)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return the positive label's probability per step, and their reduction as the score."""
        margins = self._margins(outputs)
        grades = [sigmoid(margin) for margin in margins.tolist()]
        require_finite(grades)
        read, unread = features.segments[: len(grades)], features.segments[len(grades) :]
        scores = [self._step_score(*one) for one in zip(read, grades, strict=True)]
        scores += [SegmentScore(span, None, None, None) for span in unread]
        value = _REDUCTIONS[self._spec.reduction](grades)
        return Score(value, tuple(scores), features.num_tokens, features.truncated)

    def _margins(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the positive label's logit minus the other's, one per step."""
        if not self._has_pair:
            return outputs[:, 0] * (1 if self._positive == 1 else -1)
        return (
            outputs[:, self._outputs[self._positive]]
            - outputs[:, self._outputs[1 - self._positive]]
        )

    def _step_score(self, span: Span, grade: float) -> SegmentScore:
        label = self._labels[self._positive if grade > 0.5 else 1 - self._positive]
        return SegmentScore(span, label, grade, None)

    def _render(self, sample: Sample) -> Rendered | Score:
        steps = find_segments(sample, self._spec.segmenter)
        if not steps:
            return Score(None, (), 0, False)
        written = [
            self._spec.step_template.replace("{number}", str(number)).replace(
                "{step}", sample.completion_text[start:end]
            )
            for number, (start, end) in enumerate(steps, 1)
        ]
        if self._spec.step_answer is not None:
            return self._render_turns(sample, written, self._spec.step_answer)
        joined, places, cuts = "", [], []
        for step in written:
            joined += self._spec.step_separator if joined else ""
            cuts.append(len(joined))
            # No whitespace before the first step: chat templates may drop it.
            joined += step if joined else step.lstrip()
            places.append(len(joined))
            joined += self._spec.step_token
            cuts += [places[-1], len(joined)]
        text = self._texts.render(replace(sample, completion=joined))
        at = text.completion.start
        if text.text[at : at + len(joined)] != joined:
            raise SampleError("invalid_sample", "the template changes the completion's steps")
        is_cut = self._spec.tokenization == "parts"
        return replace(
            text,
            anchor_positions=tuple(place + at for place in places),
            cuts=tuple(sorted({cut + at for cut in cuts})) if is_cut else (),
        )

    def _render_turns(self, sample: Sample, steps: Sequence[str], answer: str) -> Rendered:
        """Render each step as a user message, the first after the prompt, with its answer."""
        prompt = (
            (Message("user", sample.prompt),) if isinstance(sample.prompt, str) else sample.prompt
        )
        if any(_ANSWER in text for text in (*steps, *(one.content for one in prompt))):
            raise SampleError("invalid_sample", f"the sample has the character {_ANSWER!r}")
        *before, last = prompt or (Message("user", ""),)
        if last.role == "user":
            messages = [*before, Message("user", f"{last.content} {steps[0]}".lstrip())]
        else:
            messages = [*before, last, Message("user", steps[0])]
        for step in steps[1:]:
            messages += [Message("assistant", _ANSWER), Message("user", step)]
        text = self._texts.render(
            replace(
                sample,
                prompt=tuple(messages),
                completion=(Message("assistant", _ANSWER),),
                continue_final_message=False,
            )
        ).text
        parts = text.split(_ANSWER)
        if len(parts) != len(steps) + 1:
            raise SampleError("invalid_sample", "the chat template changes the steps' answers")
        start = max(text.find(prompt[0].content.strip()), 0) if prompt else 0
        end = text.find(last.content.strip(), start)
        end = start if end < 0 else end + len(last.content.strip())
        places, at = [], 0
        for part in parts[:-1]:
            places.append(at + len(part))
            at = places[-1] + len(answer)
        text = answer.join(parts)
        return Rendered(
            text, Span(start, end), Span(end, len(text)), anchor_positions=tuple(places)
        )

    def _features(self, tokens: TokenIds, truncated: bool) -> ModelInput:
        if not tokens.anchor_positions:
            raise SampleError("too_long", "truncation removes all steps of the completion")
        if any(tokens.ids[place] != self._step_id for place in tokens.anchor_positions):
            raise SampleError(
                "invalid_sample",
                f"step token {self._spec.read_token!r} merges with the text around it",
            )
        # The token before an answer predicts it.
        shift = 0 if self._spec.step_answer is None else 1
        reads = tuple(Span(at - shift, at - shift + 1) for at in tokens.anchor_positions)
        return ModelInput(tokens.ids, reads, truncated)
