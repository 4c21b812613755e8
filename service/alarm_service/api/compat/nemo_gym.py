"""NeMo Gym's `/verify`: a conversation of OpenAI's Responses API in, the same with `reward` out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from alarm_models.types import Message, Sample, ToolCall
from alarm_service.api.compat.common import OWN_PARTS, ScalarReward, TrainerBody, fields_of
from alarm_service.api.compat.conversation import SplitError, answer_of
from alarm_service.errors import Invalid, SampleFailed
from alarm_service.json_pieces import read_json
from alarm_service.schemas import JsonObjectIn, ListOf, Text

__all__ = ["NemoGymIn", "NemoGymOptions", "NemoGymOut", "answer", "masked_answer", "samples_of"]

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

#: Gym's names of failures: of a judge, which it may ask again, and of anything else.
_JUDGE_FAILED, _VERIFIER_ERROR = "judge_failed", "verifier_error"
#: Error codes of samples that may succeed later.
_PASSING = frozenset({"model_failed", "budget_exceeded"})

#: Where the parts of an item hold text.
_TEXT_OF_PART = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}


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
    summary: ListOf[PartIn] | None = None
    name: Text | None = None
    arguments: Text | None = None
    call_id: Text | None = None
    output: Text | ListOf[PartIn] | dict[str, Any] | None = None


class ParamsIn(TrainerBody):
    """The policy's input."""

    input: Text | ListOf[ItemIn]
    instructions: Text | None = None
    tools: ListOf[JsonObjectIn] | None = None


class IncompleteIn(TrainerBody):
    """Why a response is incomplete."""

    reason: Text | None = None


class ResponseIn(TrainerBody):
    """The policy's output, tool calls included."""

    output: ListOf[ItemIn]
    incomplete_details: IncompleteIn | None = None


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
    mask: bool = Field(
        default=False,
        description="1 answers a failed rollout with `mask_sample` and its failure instead of an "
        "error response; Gym ignores the `reward` of such a rollout",
    )


class NemoGymOut(BaseModel):
    """The request's JSON with `reward`, and with its parts as `alarm_...`."""

    model_config = ConfigDict(extra="allow")

    reward: float


def samples_of(body: NemoGymIn, options: NemoGymOptions) -> list[Sample]:
    """Take the one sample: the whole response is the completion.

    A response of one message without reasoning and calls is a text, one without items is empty.
    Raises `Invalid` for a message that is not text.
    """
    params, output = body.responses_create_params, body.response.output
    items = (
        [ItemIn(role="user", content=params.input)]
        if isinstance(params.input, str)
        else params.input
    )
    system = [Message("system", params.instructions)] if params.instructions else []
    asked = _messages(items, "responses_create_params.input")
    said = _without_markup(_messages(output, "response.output"))
    is_text = not said or said == [Message("assistant", said[0].content)]
    completion = "".join(message.content for message in said) if is_text else tuple(said)
    label = (body.model_extra or {}).get(options.reference)
    details = body.response.incomplete_details
    is_cut = details is not None and details.reason == "max_output_tokens"
    return [
        Sample(
            (*system, *asked),
            completion,
            fields_of(label),
            tools=tuple(map(_tool, params.tools or ())),
            finish_reason="length" if is_cut else None,
        )
    ]


def answer(sent: bytes, number: ScalarReward, options: NemoGymOptions) -> Response:
    """Answer as Gym's own resources servers do: with the request's JSON and the reward in it.

    Raises `Invalid` if the request cannot be written as JSON again.
    """
    try:
        return Response(_written(sent, number, options), media_type="application/json")
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body cannot be returned with its reward: {error}") from None


def masked_answer(sent: bytes, failure: SampleFailed) -> Response:
    """Answer a failed rollout as Gym's servers do: masked, with the kind of the failure.

    Raises `Invalid` as `answer`.
    """
    kind = _JUDGE_FAILED if failure.code in _PASSING else _VERIFIER_ERROR
    try:
        body = read_json(sent, packs_spans=False)
        config = body.get("instance_config")
        content = body | {
            "reward": 0.0,  # the format requires a number; `mask_sample` says that it is none
            "mask_sample": True,
            "failure_kind": kind,
            "failure_reason": f"{failure.code}: {failure}",
            "_ng_failure_class": kind,
            # Where older versions of NeMo RL read it.
            "instance_config": (config if isinstance(config, dict) else {}) | {"mask_sample": True},
        }
        return Response(_as_json(content), media_type="application/json")
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body cannot be returned with its failure: {error}") from None


def _written(sent: bytes, number: ScalarReward, options: NemoGymOptions) -> str:
    parts = {f"alarm_{name}": value for name, value in number.parts.items()}
    content: dict[str, Any] = {
        **read_json(sent, packs_spans=False),
        **parts,
        "alarm_omitted": number.omitted,
        "reward": number.value,
    }
    if options.components:
        content["reward_components"] = _components(number)
    return _as_json(content)


def _as_json(content: dict[str, Any]) -> str:
    # In pieces: one call on a large rollout would hold the GIL.
    return "".join(json.JSONEncoder(allow_nan=False).iterencode(content))


def _components(number: ScalarReward) -> dict[str, float]:
    """Return the parts that add up to the reward; a model's score is its only part."""
    aspects = {name: part for name, part in number.parts.items() if name not in OWN_PARTS}
    if "holistic" in number.parts:
        return {"holistic": number.parts["holistic"], **aspects}
    return {"score": number.value}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as chat templates read it: a function's keys are in `function`."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _messages(items: Sequence[ItemIn], where: str) -> list[Message]:
    """Return items as messages: those of one turn of the assistant are one message."""
    messages: list[Message] = []
    for at, item in enumerate(items):
        message = _message(item, f"{where}[{at}]")
        if message is None:
            continue
        joined = _joined(messages[-1], message) if messages else None
        messages[-1:] = [joined] if joined else [*messages[-1:], message]
    return messages


def _message(item: ItemIn, where: str) -> Message | None:
    """Return one item as a message; None for an item of another type."""
    if item.type == "message":
        role = "system" if item.role == "developer" else item.role
        return Message(role, _text(item.content, f"{where}.content"))
    if item.type == "reasoning":
        name = "content" if item.content else "summary"
        thought = _text(getattr(item, name), f"{where}.{name}", "\n\n")
        return Message("assistant", "", reasoning=thought) if thought else None
    if item.type.endswith("_call_output"):
        return Message(
            "tool", _tool_text(item.output, f"{where}.output"), tool_call_id=item.call_id
        )
    if item.type.endswith("_call"):
        name = item.name or item.type.removesuffix("_call")
        call = ToolCall(name, item.arguments or "{}", item.call_id)
        return Message("assistant", "", tool_calls=(call,))
    return None


def _joined(before: Message, after: Message) -> Message | None:
    """Return two messages as one if they are of one turn: reasoning, then content, then calls."""
    if before.role != "assistant" or after.role != "assistant" or after.reasoning:
        return None
    if after.tool_calls:
        return replace(before, tool_calls=before.tool_calls + after.tool_calls)
    is_thought = before.reasoning and not before.content and not before.tool_calls
    return replace(before, content=after.content) if is_thought else None


def _without_markup(messages: Sequence[Message]) -> list[Message]:
    """Remove a template's tokens from what the policy wrote. Raises `Invalid`."""
    plain: list[Message] = []
    for message in messages:
        if not message.is_of_policy:
            plain.append(message)
            continue
        try:
            found = answer_of(message.content, None)
        except SplitError as error:
            raise Invalid(f"response.output: a message cannot be split: {error}") from error
        if isinstance(found, str):
            plain.append(replace(message, content=found))
        else:
            plain += found
    return plain


def _tool_text(output: Any, where: str) -> str:
    return "" if isinstance(output, dict) else _text(output, where)


def _text(content: str | list[PartIn] | None, where: str, between: str = "") -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return between.join(_part(part, f"{where}[{at}]") for at, part in enumerate(content))


def _part(part: PartIn, where: str) -> str:
    name = _TEXT_OF_PART.get(part.type)
    text = getattr(part, name) if name else None
    if text is None:
        raise Invalid(f"{where}: a part of type {part.type[:80]!r} has no text to reward")
    return str(text)
