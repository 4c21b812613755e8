"""Chat messages of trainers, from mappings and objects, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from alarm_client._payloads import json_of
from alarm_client.message_offsets import TEXT_PARTS, completion_text

__all__ = [
    "THOUGHT_KEYS",
    "completion_text",
    "content_of",
    "get",
    "is_message",
    "listed",
    "message_of",
    "role_of",
    "tools_of",
]

_OF_TOOLS = ("tool", "function")

# Names of a message's thought: OpenAI-compatible servers, OpenRouter, gpt-oss's template.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")

# Part types of processors that name a part by its only key: {"image": ...}.
_KINDS = ("image", "image_url", "video", "video_url", "audio", "input_audio", "file")

# Other part types: OpenAI's Responses API, Anthropic's messages.
_OTHER_PARTS = ("input_image", "input_file", "input_video", "document", "search_result")


def message_of(message: Any) -> dict[str, Any]:
    """A message with its role, content, thought, tool calls and name, from a mapping or an object.

    Content that is only text becomes a string; of parts that are not text the type is kept, so that
    the server can say that its model does not read them. What a policy or a tool writes in place of
    a call's arguments or of parts is kept as its JSON. Other keys, such as a trainer's token ids,
    are left out, as are missing values. TypeError if there is no role or the content is not text or
    parts.
    """
    role = role_of(message)
    found: dict[str, Any] = {"role": role}
    calls = _calls(message)
    content = get(message, "content")
    if role in _OF_TOOLS:
        content = _tool_content(content)
    found["content"] = None if content is None and calls else content_of(content)
    for name in THOUGHT_KEYS:
        thought = get(message, name)
        if isinstance(thought, str) and thought:
            found["reasoning_content"] = thought
            break
    if calls:
        found["tool_calls"] = calls
    for name in ("tool_call_id", "name", "refusal"):
        value = get(message, name)
        if isinstance(value, str):
            found[name] = value
    if get(message, "audio") is not None:
        parts = found["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts or []
        found["content"] = [*parts, {"type": "audio"}]
    return found


def content_of(content: Any) -> str | list[dict[str, str]]:
    """The text of a content; its parts if one of them is not text.

    TypeError for anything but a string, None (empty), or a list of parts.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (bytes, bytearray, Mapping)) or not isinstance(content, Iterable):
        raise TypeError(
            "a message's content must be a string or a list of parts, got a "
            f"{type(content).__name__}"
        )
    parts = [_part(part) for part in content]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _tool_content(value: Any) -> Any:
    """A tool's result: text or parts as they are, and values of its own as their JSON."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping)):
        value = list(value)
        if not value or any(map(_is_part, value)):
            return value
    return _json_text(value)


def _is_part(value: Any) -> bool:
    kind = _kind(value)
    if kind is None:
        return isinstance(get(value, "text"), str)
    return kind in TEXT_PARTS or kind in _KINDS or kind in _OTHER_PARTS


def tools_of(value: Any) -> list[Any] | None:
    """The tools of a dataset row or a setting, as JSON schemas; None if there are none.

    A string is their JSON. Functions become the schemas that transformers makes of them for chat
    templates.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ValueError(f"tools must be a list or its JSON ({error})") from None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return None
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"tools must be a list, got a {type(value).__name__}")
    return [_tool(tool) for tool in value] or None


def _tool(tool: Any) -> Any:
    if isinstance(tool, str):
        return json.loads(tool)
    if hasattr(tool, "model_dump"):
        return _function_level(tool.model_dump(exclude_none=True, mode="json"))
    if isinstance(tool, Mapping):
        return tool
    schema = getattr(tool, "json_schema", None) or getattr(tool, "tool_schema", None)
    if isinstance(schema, Mapping):
        return schema
    if callable(tool):
        return _schema_of(tool)
    raise TypeError(f"a tool must be a JSON schema or a function, got a {type(tool).__name__}")


def _schema_of(function: Any) -> Any:
    try:
        from transformers.utils.chat_template_utils import get_json_schema
    except ImportError:
        raise TypeError(
            "a tool must be a JSON schema, got a function; transformers, which makes one of it, is "
            "not installed"
        ) from None
    return get_json_schema(function)


def _function_level(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool of OpenAI's Responses API in the form that chat templates read."""
    if tool.get("type", "function") != "function" or "function" in tool or "name" not in tool:
        return tool
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if name in tool}}


def role_of(message: Any) -> str:
    """The role of a message, from a mapping or an object; TypeError if it has none."""
    role = get(message, "role")
    if role is None:
        raise TypeError(f"a message must have a role and a content, got a {type(message).__name__}")
    return str(getattr(role, "value", role))  # the value of an enum


def is_message(value: Any) -> bool:
    """Whether a value is one message, and not a list of them."""
    if isinstance(value, Mapping):
        return True
    return hasattr(value, "content") and not isinstance(value, (list, tuple))


def get(message: Any, name: str) -> Any:
    """A value of a mapping or an attribute of an object; None if there is none."""
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def listed(value: Any, what: str) -> list[Any]:
    """The messages of a list, a tuple or an array; TypeError for anything else."""
    is_many = isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping))
    if hasattr(value, "model_dump"):
        dumped = value.model_dump()
        is_many, value = isinstance(dumped, list), dumped
    if not is_many:
        raise TypeError(
            f"{what} must be a string or messages with a role and a content, got a "
            f"{type(value).__name__}"
        )
    return list(value)


def _calls(message: Any) -> list[dict[str, Any]]:
    calls = get(message, "tool_calls")
    if hasattr(calls, "tolist"):
        calls = calls.tolist()
    found = [_call(call) for call in calls or ()]
    old = get(message, "function_call")
    return found if old is None else [*found, _call({"function": old})]


def _call(call: Any) -> dict[str, Any]:
    if isinstance(call, str):  # verifiers' states hold calls as JSON
        call = json.loads(call)
    function = get(call, "function")
    function = call if function is None else function
    name = get(function, "name")
    if not isinstance(name, str):
        raise TypeError(
            f"a tool call must have a function with a name, got a {type(call).__name__}"
        )
    found: dict[str, Any] = {"type": "function", "function": {"name": name}}
    arguments = get(function, "arguments")
    if arguments is not None:
        found["function"]["arguments"] = _arguments(arguments)
    call_id = get(call, "id")
    return {"id": call_id, **found} if isinstance(call_id, str) else found


def _arguments(value: Any) -> Any:
    """An object or a text; of anything else its JSON, which fails one sample on the server."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        try:
            return json_of(value, "arguments")
        except (TypeError, ValueError):
            pass
    return _json_text(value)


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError):
        return f"<{type(value).__name__}>"


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _kind(part: Any) -> str | None:
    """The type of a part, which processors may name by its only key; None if it has none."""
    kind = get(part, "type")
    if kind is None:
        kind = next((name for name in _KINDS if get(part, name) is not None), None)
    return kind if isinstance(kind, str) else None


def _part(part: Any) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind, text = get(part, "type"), get(part, "text")
    if isinstance(text, str) and kind in (None, *TEXT_PARTS):
        return {"type": "text", "text": text}
    if kind == "refusal":
        return {"type": "text", "text": str(get(part, "refusal") or "")}
    if kind in TEXT_PARTS:
        return {"type": "text", "text": ""}  # datasets fill missing values with None
    kind = _kind(part)
    if kind is None:
        raise TypeError(f"a content part must have a type or a text, got a {type(part).__name__}")
    return {"type": kind}
