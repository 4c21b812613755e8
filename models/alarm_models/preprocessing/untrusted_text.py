"""Texts of others in a judge's question: marks that they cannot forge, and no control tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

__all__ = ["mark_of", "neutralized", "without_invisible"]

#: The zero-width space that splits control tokens.
_INVISIBLE = "\u200b"

#: What chat templates write around turns and thoughts: ``<|im_start|>``, ``<start_of_turn>``,
#: ``[INST]``, ``<<SYS>>``, ``</s>``, ``<extra_id_1>``, and DeepSeek's with wide bars.
_CONTROL_TOKEN = re.compile(
    r"<[|｜][^\n<>]{0,80}?[|｜]>"
    r"|</?(?:s|start_of_turn|end_of_turn|bos|eos|pad|unk|think|thinking|tool_call|tool_response)>"
    r"|<(?:extra_id|SPECIAL)_\d{1,4}>|</?seed:[a-z_]{1,40}>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG)\]"
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


def without_invisible(text: str) -> str:
    """Remove the zero-width spaces that `neutralized` adds, and any others."""
    return text.replace(_INVISIBLE, "")


def _split(match: re.Match[str]) -> str:
    token = match.group()
    return f"{token[0]}{_INVISIBLE}{token[1:]}"
