"""What a recipe says of models with weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from alarm_models.specs.base import Spec
from alarm_models.truncation import Truncation

__all__ = ["NeuralSpec", "SegmentsSpec", "SequenceSpec"]

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


class SequenceSpec(NeuralSpec):
    """One score for a whole completion."""

    kind: Literal["sequence"] = "sequence"
    template: str = Field(default="chat", description='a text, or "chat": the tokenizer\'s own')
    pooling: Literal["first", "last", "mean"] = Field(
        default="last", description="the tokens that a named head reads"
    )
    activation: Literal["none", "sigmoid"] = "none"

    @property
    def templates(self) -> tuple[str, ...]:
        """The template, unless it is the tokenizer's own."""
        return () if self.template == "chat" else (self.template,)


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

    @property
    def templates(self) -> tuple[str, ...]:
        """The text before the segments."""
        return (self.template,)

    @model_validator(mode="after")
    def _labels_hold_both(self) -> SegmentsSpec:
        for label in (self.positive_label, self.negative_label):
            if self.labels is not None and label not in self.labels:
                raise ValueError(f"labels {list(self.labels)} lack {label!r}")
        return self
