"""LLaMA-Factory's reward format: conversations in, scores out; it ignores the HTTP status."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alarm_models.types import Sample
from alarm_service.api.compat.common import TrainerBody, split_each
from alarm_service.api.compat.conversation import split_text
from alarm_service.api.compat.templates import ChatTemplate
from alarm_service.schemas import ListOf, Text

__all__ = ["ScoreEvaluationIn", "ScoreEvaluationOut", "answer", "named", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "model": "model",
    "messages": [
        "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"
        "Jane Austen wrote it.<|im_end|>"
    ],
}


class ScoreEvaluationIn(TrainerBody):
    """Texts, each a conversation with its special tokens; the last turn is scored."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    model: Text | None = Field(
        default=None, description="the trainer's constant `model` is the default recipe"
    )
    messages: ListOf[Text]


class ScoreEvaluationOut(BaseModel):
    """One score per text. Errors have no `scores`, so that a training run stops at one."""

    id: str
    object: Literal["score.evaluation"] = "score.evaluation"
    model: str
    scores: list[float]


def named(body: ScoreEvaluationIn) -> str | None:
    """Return the recipe or model that a body without a path names."""
    return None if body.model in (None, "", "model") else body.model


def samples_of(body: ScoreEvaluationIn, template: ChatTemplate | None) -> list[Sample]:
    """Split texts into samples; raise `Invalid` where one cannot be split."""
    texts = split_each(
        body.messages, lambda index: split_text(body.messages[index], template), "messages"
    )
    return [Sample(one.prompt, one.completion) for one in texts]


def answer(model: str, scores: list[float]) -> ScoreEvaluationOut:
    """Return the response of LLaMA-Factory's own server."""
    return ScoreEvaluationOut(id=f"scoreeval-{uuid.uuid4().hex}", model=model, scores=scores)
