"""NeMo Gym's `/verify`: a conversation of OpenAI's Responses API in, the same with `reward` out."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from alarm_models.types import Message, Sample
from alarm_service.api.compat.common import (
    OWN_PARTS,
    ScalarReward,
    TrainerBody,
    fields_of,
    split_each,
)
from alarm_service.api.compat.conversation import Texts, answer_of
from alarm_service.errors import Invalid
from alarm_service.json_pieces import read_json
from alarm_service.schemas import ListOf, Text

__all__ = ["NemoGymIn", "NemoGymOptions", "NemoGymOut", "answer", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "responses_create_params": {"input": [{"role": "user", "content": "Who wrote Emma?"}]},
    "response": {
        "output": [
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Jane Austen wrote it."}],
            }
        ]
    },
    "expected_answer": "Jane Austen",
}

#: Where the parts of a message hold text.
_TEXT_OF_PART = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}


class PartIn(TrainerBody):
    """A part of a message."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None


class ItemIn(TrainerBody):
    """A message, a tool call, the tool's output, or reasoning."""

    type: Text = "message"
    role: Text = "assistant"
    content: Text | ListOf[PartIn] | None = None
    output: Text | ListOf[PartIn] | dict[str, Any] | None = None


class ParamsIn(TrainerBody):
    """The policy's input."""

    input: Text | ListOf[ItemIn]
    instructions: Text | None = None


class ResponseIn(TrainerBody):
    """The policy's output, tool calls included."""

    output: ListOf[ItemIn]


class NemoGymIn(TrainerBody):
    """One rollout, with the columns of its row."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [_EXAMPLE]})

    responses_create_params: ParamsIn
    response: ResponseIn


class NemoGymOptions(BaseModel):
    """Which column is the reference, and whether to return reward components."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reference: Text = Field(
        default="expected_answer", description="the row's column that is the field `reference`"
    )
    components: bool = Field(
        default=False, description="1 adds `reward_components`, for rewards of several objectives"
    )


class NemoGymOut(BaseModel):
    """The request's JSON with `reward`, and with its parts as `alarm_...`."""

    model_config = ConfigDict(extra="allow")

    reward: float


def samples_of(body: NemoGymIn, options: NemoGymOptions) -> list[Sample]:
    """Take the one sample: the policy's last message, after all that came before it.

    A rollout that ends without a message has an empty completion. Reasoning is left out, and a
    tool call is a turn without text. Raises `Invalid` for a message that is not text.
    """
    params, output = body.responses_create_params, body.response.output
    items = (
        [ItemIn(role="user", content=params.input)]
        if isinstance(params.input, str)
        else params.input
    )
    last = max((at for at, item in enumerate(output) if item.type == "message"), default=None)
    system = [Message("system", params.instructions)] if params.instructions else []
    before = _turns(items, "responses_create_params.input")
    before += _turns(output[:last], "response.output")
    where = f"response.output[{last}].content"
    completion = "" if last is None else _text(output[last].content, where)
    turns = (*system, *before)
    (texts,) = split_each([completion], lambda _: Texts(turns, answer_of(completion, None)), where)
    label = (body.model_extra or {}).get(options.reference)
    return [Sample(texts.prompt, texts.completion, fields_of(label))]


def answer(sent: bytes, number: ScalarReward, options: NemoGymOptions) -> Response:
    """Answer as Gym's own resources servers do: with the request's JSON and the reward in it.

    Raises `Invalid` if the request cannot be written as JSON again.
    """
    try:
        return Response(_written(sent, number, options), media_type="application/json")
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body cannot be returned with its reward: {error}") from None


def _written(sent: bytes, number: ScalarReward, options: NemoGymOptions) -> str:
    parts = {f"alarm_{name}": value for name, value in number.parts.items()}
    content: dict[str, Any] = {
        **read_json(sent, packs_spans=False),
        **parts,
        "reward": number.value,
    }
    if options.components:
        content["reward_components"] = _components(number)
    # In pieces: one call on a large rollout would hold the GIL.
    return "".join(json.JSONEncoder(allow_nan=False).iterencode(content))


def _components(number: ScalarReward) -> dict[str, float]:
    """Return the parts that add up to the reward; a model's score is its only part."""
    aspects = {name: part for name, part in number.parts.items() if name not in OWN_PARTS}
    if "holistic" in number.parts:
        return {"holistic": number.parts["holistic"], **aspects}
    return {"score": number.value}


def _turns(items: list[ItemIn], where: str) -> list[Message]:
    turns: list[Message] = []
    for at, item in enumerate(items):
        if item.type == "message":
            role = "system" if item.role == "developer" else item.role
            turns.append(Message(role, _text(item.content, f"{where}[{at}].content")))
        elif item.type.endswith("_call_output"):
            turns.append(Message("tool", _tool_text(item.output, f"{where}[{at}].output")))
        elif item.type.endswith("_call") and (not turns or turns[-1].role != "assistant"):
            turns.append(Message("assistant", ""))  # its turn had no text besides
    return turns


def _tool_text(output: Any, where: str) -> str:
    return "" if isinstance(output, dict) else _text(output, where)


def _text(content: str | list[PartIn] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part(part, f"{where}[{at}]") for at, part in enumerate(content))


def _part(part: PartIn, where: str) -> str:
    name = _TEXT_OF_PART.get(part.type)
    text = getattr(part, name) if name else None
    if text is None:
        raise Invalid(f"{where}: a part of type {part.type[:80]!r} has no text to reward")
    return str(text)
