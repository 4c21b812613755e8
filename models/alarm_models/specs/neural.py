"""What a recipe says of models with weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from alarm_models.specs.base import Spec
from alarm_models.texts.truncation import Truncation

__all__ = [
    "GenerativeSpec",
    "MultiObjectiveSpec",
    "NeuralSpec",
    "SegmentsSpec",
    "SequenceSpec",
    "StepsSpec",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class NeuralSpec(Spec):
    """What every model with weights has."""

    checkpoint: str = Field(min_length=1, description="a folder or a hub id")
    truncation: Truncation = Truncation.PROMPT
    max_tokens: int | None = Field(default=None, ge=8, description="else the checkpoint's own")
    dtype: Dtype = Field(default="auto", description="float32 on a CPU, bfloat16 on a GPU")
    head: str | None = Field(default=None, description="a linear head on the base model, by name")
    mark_copied: bool = Field(
        default=False, description="token type 1 for words copied from the prompt"
    )
    trust_remote_code: bool = False

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts that name fields of a sample; not the tokenizer's own template."""
        texts = (getattr(self, key, None) for key in ("template", "ask"))
        return tuple(text for text in texts if text is not None and text != "chat")


class SequenceSpec(NeuralSpec):
    """One score for a whole completion."""

    kind: Literal["sequence"] = "sequence"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    activation: Literal["none", "sigmoid"] = "none"


class SegmentsSpec(NeuralSpec):
    """A judgement of each segment, read at the separator before it."""

    kind: Literal["segments"] = "segments"
    template: str = Field(description="what stands before the segments")
    segmenter: Literal["sentences", "subsentences"] = "sentences"
    separator: str | None = Field(default=None, description="else the tokenizer's own")
    pooling: Literal["separator", "mean"] = Field(
        default="separator", description="the separator alone, or with the segment's tokens"
    )
    positive_label: str
    negative_label: str
    labels: tuple[str, ...] | None = Field(
        default=None, description="label names by position, where the checkpoint names none"
    )

    @model_validator(mode="after")
    def _labels_hold_both(self) -> SegmentsSpec:
        for label in (self.positive_label, self.negative_label):
            if self.labels is not None and label not in self.labels:
                raise ValueError(f"labels {list(self.labels)} lack {label!r}")
        return self


class StepsSpec(NeuralSpec):
    """The probability that each step of a solution is right, read at the token after it."""

    kind: Literal["steps"] = "steps"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    step_token: str = Field(default="<extra_0>", description="put after each step, and read there")
    segmenter: Literal["steps", "sentences"] = "steps"
    labels: tuple[str, str] | None = Field(
        default=None, description="label names by position, where the checkpoint names none"
    )
    positive_label: str | None = Field(default=None, description="else the second label")
    reduction: Literal["min", "mean", "product", "last"] = Field(
        default="min", description="what makes one score of the steps' probabilities"
    )


class MultiObjectiveSpec(NeuralSpec):
    """Several named numbers for a whole completion, each of use as an aspect."""

    kind: Literal["multi-objective"] = "multi-objective"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    objectives: tuple[str, ...] | None = Field(
        default=None, description="the outputs' names by position, else the checkpoint's labels"
    )
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    weights: Mapping[str, float] = Field(
        default_factory=dict, description="objective -> its weight in the score"
    )
    gate_at: str | None = Field(
        default=None,
        description="ArmoRM's form: the text that ends a prompt, at whose first token gate reads",
    )

    @model_validator(mode="after")
    def _one_way_to_a_score(self) -> MultiObjectiveSpec:
        if self.gate_at is None:
            return self
        if self.head is None:
            raise ValueError('gate_at wants `head`, the regression layer ("regression_layer")')
        if self.weights:
            raise ValueError("weights are the gate's where gate_at is given: leave one out")
        return self


class GenerativeSpec(NeuralSpec):
    """How likely a causal model finds one token, or yes against no, as the next."""

    kind: Literal["generative"] = "generative"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    ask: str | None = Field(
        default=None, description="a text that is put to the chat template as a user's message"
    )
    generation_prompt: bool = Field(
        default=False, description="let the next turn begin after the conversation"
    )
    positive: str | int = Field(description="a token, as text or id")
    negative: str | int | None = Field(default=None, description="score positive against this")
    measure: Literal["logit", "logprob"] = "logit"
    activation: Literal["none", "sigmoid"] = "none"

    @model_validator(mode="after")
    def _asks_in_a_chat(self) -> GenerativeSpec:
        if self.ask is not None and self.template != "chat":
            raise ValueError("ask is put to the chat template: leave `template` out")
        return self
