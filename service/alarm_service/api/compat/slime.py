"""The reward format of slime and miles: one prompt and response in, the reward out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from alarm_models.types import Sample
from alarm_service.api.compat.common import (
    ChatMessageIn,
    ScalarReward,
    TextOptions,
    TrainerBody,
    fields_of,
    messages_of,
    pair_messages,
    split_each,
)
from alarm_service.api.compat.conversation import Texts, answer_of, pair_texts
from alarm_service.api.compat.templates import ChatTemplate
from alarm_service.schemas import MAX_GROUP_SIZE, Id, ListOf, Text

__all__ = ["SlimeIn", "SlimeOptions", "SlimeOut", "answer", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "prompt": "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n",
    "response": "Jane Austen wrote it.<|im_end|>",
    "label": "Jane Austen",
}


class SlimeIn(TrainerBody):
    """One sample; prompt and response are texts in the policy's template, or messages."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    prompt: Text | ListOf[ChatMessageIn]
    response: Text | ListOf[ChatMessageIn]
    label: Any = Field(default=None, description="the field `reference`")
    id: Id = None
    group: Text | int | None = Field(default=None, description="as in samples")
    group_size: int | None = Field(default=None, ge=1, le=MAX_GROUP_SIZE)


class SlimeOptions(TextOptions):
    """How texts are split, and the format of the response."""

    format: Literal["number", "dict"] = Field(
        default="number", description="`dict` with `--reward-key score`: parts beside the reward"
    )


#: The reward, or an object with the reward as `score`, its parts, and what models were not shown.
SlimeOut = float | dict[str, float | list[str]]


def samples_of(body: SlimeIn, template: ChatTemplate | None) -> list[Sample]:
    """Take the one sample; raise `Invalid` where its template cannot be read."""
    (texts,) = split_each([body.response], lambda _: _texts(body, template), "response")
    return [
        Sample(
            texts.prompt,
            texts.completion,
            fields_of(body.label),
            id=None if body.id is None else str(body.id),
            group=None if body.group is None else str(body.group),
            group_size=body.group_size,
        )
    ]


def answer(number: ScalarReward, options: SlimeOptions) -> SlimeOut:
    """Return the reward in the format that the options ask for."""
    if options.format == "number":
        return number.value
    return {**number.parts, "score": number.value, "omitted": list(number.omitted)}


def _texts(body: SlimeIn, template: ChatTemplate | None) -> Texts:
    if not isinstance(body.response, str):
        prompt = body.prompt if isinstance(body.prompt, str) else messages_of(body.prompt)
        return pair_messages(prompt, messages_of(body.response), template)
    if isinstance(body.prompt, str):
        return pair_texts(body.prompt, body.response, template)
    return Texts(messages_of(body.prompt), answer_of(body.response, template))
