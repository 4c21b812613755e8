"""Texts of others in a judge's question: marks that they cannot forge, and no control tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from alarm_models.types import Message, Sample

__all__ = [
    "mark_of",
    "neutralized",
    "neutralized_fields",
    "neutralized_sample",
    "without_invisible",
]

#: The zero-width space that splits control tokens.
_INVISIBLE = "\u200b"

#: Control tokens of known tokenizers, which a server may parse as such in any text: those around
#: turns, thoughts, tool calls, images and parts of code (``<|im_start|>``, ``<start_of_turn>``,
#: ``[INST]``, ``<<SYS>>``, ``[|endofturn|]``, DeepSeek's with wide bars), those of encoders
#: (``[CLS]``), and reserved ones (``<unused99>``, ``<extra_id_1>``).
_CONTROL_TOKEN = re.compile(
    r"<[|｜][^\n<>]{0,80}?[|｜]>|\[\|[^\n\[\]]{0,80}?\|\]"
    r"|</?(?:s|start_of_turn|end_of_turn|bos|eos|pad|unk|mask|sop|eop|BOS_TOKEN|EOS_TOKEN|PAD_TOKEN"
    r"|think|thinking|tool_call|tool_response|image_soft_token|(?:start|end)_of_image"
    r"|fim_(?:prefix|middle|suffix|pad))>"
    r"|<(?:extra_id|SPECIAL|reserved|reserved_token|reserved_special_token)_\d{1,6}>"
    r"|<unused_?\d{1,6}>|</?seed:[a-z_]{1,40}>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG)\]"
    r"|\[(?:CLS|SEP|MASK|gMASK|sMASK|PAD|UNK|BOS|EOS|PREFIX|MIDDLE|SUFFIX)\]"
    r"|\[(?:UNUSED_TOKEN_|unused_?|control_)\d{1,6}\]"
    r"|<</?SYS>>"
)

#: Characters of a mark: 64 bits, which no text contains by chance or by trying.
_MARK_CHARS = 16


def mark_of(*texts: str) -> str:
    """Return a mark for the lines around texts: a digest of them, so that none can contain it.

    The same texts have the same mark, and a judge's answer to them can be stored.
    """
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()[:_MARK_CHARS]


def neutralized(text: str, tokens: Iterable[str] = ()) -> str:
    """Return a text without control tokens.

    A zero-width space is inserted after the first character of each. ``tokens`` are those of the
    judge's tokenizer, in addition to those of known tokenizers.
    """
    pattern = _pattern_of(tuple(tokens))
    if pattern is not None:
        text = pattern.sub(_split, text)
    return _CONTROL_TOKEN.sub(_split, text)


@lru_cache(maxsize=32)
def _pattern_of(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    """Return a pattern of a tokenizer's tokens, the longest first; None if there are none."""
    own = {token.strip() for token in tokens if len(token.strip()) > 1}
    if not own:
        return None
    return re.compile("|".join(map(re.escape, sorted(own, key=len, reverse=True))))


def neutralized_sample(sample: Sample, tokens: Iterable[str] = ()) -> Sample:
    """Return a sample without control tokens in its texts; ``tokens`` are as in `neutralized`.

    It has no token offsets and no segments, because their texts may have moved.
    """
    tokens = tuple(tokens)

    def content(texts: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
        if isinstance(texts, str):
            return neutralized(texts, tokens)
        return tuple(_neutralized_message(one, tokens) for one in texts)

    return replace(
        sample,
        prompt=content(sample.prompt),
        completion=content(sample.completion),
        fields=neutralized_fields(sample.fields, tokens),
        token_offsets=None,
        segments={},
    )


def neutralized_fields(fields: Mapping[str, Any], tokens: Iterable[str] = ()) -> dict[str, Any]:
    """Return a sample's fields, of which those that are texts have no control tokens."""
    return {
        name: neutralized(value, tokens) if isinstance(value, str) else value
        for name, value in fields.items()
    }


def _neutralized_message(message: Message, tokens: Iterable[str]) -> Message:
    neutral = partial(neutralized, tokens=tokens)

    def if_given(text: str | None) -> str | None:
        return None if text is None else neutral(text)

    return replace(
        message,
        role=neutral(message.role),
        content=neutral(message.content),
        reasoning=neutral(message.reasoning),
        tool_calls=tuple(
            replace(
                call,
                name=neutral(call.name),
                arguments=neutral(call.arguments),
                id=if_given(call.id),
            )
            for call in message.tool_calls
        ),
        tool_call_id=if_given(message.tool_call_id),
        name=if_given(message.name),
    )


def without_invisible(text: str) -> str:
    """Remove the zero-width spaces that `neutralized` adds, and any others."""
    return text.replace(_INVISIBLE, "")


def _split(match: re.Match[str]) -> str:
    token = match.group()
    return f"{token[0]}{_INVISIBLE}{token[1:]}"
