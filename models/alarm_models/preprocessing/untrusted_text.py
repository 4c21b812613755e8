"""Texts of others in a judge's question: marks that they cannot forge, and no control tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from alarm_models.types import Message, Sample

__all__ = ["mark_of", "neutralized", "neutralized_sample", "without_invisible"]

#: The zero-width space that splits control tokens.
_INVISIBLE = "\u200b"

#: Tokens with a meaning of their own in known tokenizers, which a server may read as such in any
#: text: those around turns, thoughts, calls of tools, images and parts of code (``<|im_start|>``,
#: ``<start_of_turn>``, ``[INST]``, ``<<SYS>>``, ``[|endofturn|]``, DeepSeek's with wide bars),
#: those of encoders (``[CLS]``), and reserved ones (``<unused99>``, ``<extra_id_1>``).
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
    """Return a text in which no control token of a chat template is left.

    A zero-width space is put behind the first character of each. ``tokens`` are those of the
    judge's tokenizer; those of common chat templates are known.
    """
    own = sorted({token for token in tokens if len(token.strip()) > 1}, key=len, reverse=True)
    if own:
        pattern = re.compile("|".join(re.escape(token.strip()) for token in own))
        text = pattern.sub(_split, text)
    return _CONTROL_TOKEN.sub(_split, text)


def neutralized_sample(sample: Sample, tokens: Iterable[str] = ()) -> Sample:
    """Return a sample whose texts have no control tokens left, and without spans, which may move.

    ``tokens`` are as in `neutralized`.
    """
    neutral = partial(neutralized, tokens=tuple(tokens))

    def content(texts: str | tuple[Message, ...]) -> str | tuple[Message, ...]:
        if isinstance(texts, str):
            return neutral(texts)
        return tuple(
            replace(
                one,
                content=neutral(one.content),
                reasoning=neutral(one.reasoning),
                tool_calls=tuple(
                    replace(call, arguments=neutral(call.arguments)) for call in one.tool_calls
                ),
            )
            for one in texts
        )

    return replace(
        sample,
        prompt=content(sample.prompt),
        completion=content(sample.completion),
        fields={
            name: neutral(value) if isinstance(value, str) else value
            for name, value in sample.fields.items()
        },
        token_offsets=None,
        segments={},
    )


def without_invisible(text: str) -> str:
    """Remove the zero-width spaces that `neutralized` adds, and any others."""
    return text.replace(_INVISIBLE, "")


def _split(match: re.Match[str]) -> str:
    token = match.group()
    return f"{token[0]}{_INVISIBLE}{token[1:]}"
