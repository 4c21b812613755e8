"""Samples as JSON, in the shape of the `/score` route: for other servers and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alarm_models.types import Message, Sample, Span

__all__ = ["sample_from_json", "sample_to_json"]


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """Return a sample as the JSON object of a request; what it does not have is left out."""
    encoded: dict[str, Any] = {
        "prompt": _content_to_json(sample.prompt),
        "completion": _content_to_json(sample.completion),
    }
    if sample.fields:
        encoded["fields"] = dict(sample.fields)
    if sample.segments:
        encoded["segments"] = {name: list(spans) for name, spans in sample.segments.items()}
    if sample.token_offsets is not None:
        encoded["token_offsets"] = list(sample.token_offsets)
    names = {"id": sample.id, "group": sample.group}
    return encoded | {key: name for key, name in names.items() if name is not None}


def sample_from_json(encoded: Mapping[str, Any]) -> Sample:
    """Return the sample that `sample_to_json` encoded."""
    offsets = encoded.get("token_offsets")
    return Sample(
        prompt=_content_from_json(encoded["prompt"]),
        completion=_content_from_json(encoded["completion"]),
        fields=encoded.get("fields", {}),
        token_offsets=None if offsets is None else tuple(Span(*pair) for pair in offsets),
        segments={
            name: tuple(Span(*pair) for pair in pairs)
            for name, pairs in encoded.get("segments", {}).items()
        },
        id=encoded.get("id"),
        group=encoded.get("group"),
    )


def _content_to_json(content: str | tuple[Message, ...]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"role": message.role, "content": message.content} for message in content]


def _content_from_json(encoded: str | list[dict[str, str]]) -> str | tuple[Message, ...]:
    if isinstance(encoded, str):
        return encoded
    return tuple(Message(one["role"], one["content"]) for one in encoded)
