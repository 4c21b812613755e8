"""The reward format of Fireworks' Eval Protocol: a conversation in, a score with metrics out."""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from alarm_models.types import Message, Sample
from alarm_service.api.compat.common import (
    ChatMessageIn,
    ScalarReward,
    TrainerBody,
    fields_of,
    messages_of,
    text_fields,
)
from alarm_service.errors import Invalid
from alarm_service.schemas import ListOf

__all__ = ["EvaluationIn", "EvaluationOut", "answer", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Who wrote Emma?"},
        {"role": "assistant", "content": "Jane Austen wrote it."},
    ],
    "ground_truth": "Jane Austen",
}


class EvaluationIn(TrainerBody):
    """A conversation that ends with the policy's answer, as reward functions get it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    messages: ListOf[ChatMessageIn] = Field(min_length=1)
    original_messages: ListOf[ChatMessageIn] | None = Field(
        default=None, description="the prompt; by default all messages but the last"
    )
    ground_truth: Any = Field(default=None, description="the field `reference`")
    further: dict[str, Any] | None = Field(
        default=None,
        validation_alias=AliasChoices("kwargs"),
        description="further fields, by name",
    )


class MetricOut(BaseModel):
    """One part of the reward."""

    is_score_valid: bool = True
    score: float
    reason: str


class EvaluationOut(BaseModel):
    """The reward and its parts; a rollout that failed is an error response."""

    score: float
    is_score_valid: bool = True
    reason: str
    metrics: dict[str, MetricOut]


def samples_of(body: EvaluationIn) -> list[Sample]:
    """Take the one sample; raise `Invalid` unless the conversation ends with an answer."""
    messages = messages_of(body.messages)
    given = body.original_messages
    num_asked = len(messages) - 1 if given is None else len(given)
    if given is not None and messages_of(given) != messages[:num_asked]:
        raise Invalid("original_messages: should be the first of `messages`")
    prompt, answered = messages[:num_asked], messages[num_asked:]
    if not answered or not answered[-1].is_of_policy:
        raise Invalid("messages: should end with a message of the assistant that can be rewarded")
    is_text = answered == (Message(answered[0].role, answered[0].content),)
    return [
        Sample(
            prompt,
            answered[0].content if is_text else answered,
            text_fields(body.further or {}) | fields_of(body.ground_truth),
        )
    ]


def answer(source: str, number: ScalarReward) -> EvaluationOut:
    """Return the reward of a recipe or model, with its parts as metrics."""
    metrics = {
        name: MetricOut(score=value, reason=f"{name} of {source}")
        for name, value in number.parts.items()
    }
    omitted = f"; not shown to models: {', '.join(number.omitted)}" if number.omitted else ""
    return EvaluationOut(score=number.value, reason=f"reward of {source}{omitted}", metrics=metrics)
