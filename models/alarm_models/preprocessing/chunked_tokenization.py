"""Splits long texts for tokenization, if the parts provably give the same tokens as the whole.

A text is split before a single space between two visible ASCII characters. The two sides have the
same tokens separately and together if the tokenizer's pre-tokenizer splits there and its normalizer
does not join them. `can_cut` recognizes such tokenizers by their tokenizer.json; other tokenizers
get every text whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from alarm_models.preprocessing.templates import Rendered
from alarm_models.types import Span

__all__ = ["can_cut", "cut"]

_PLACE = re.compile(r"(?<=[!-~]) (?=[!-~])")

#: No split within this distance of the prompt's ends, where offsets decide what is prompt.
_MARGIN = 4

#: Normalizers that depend only on a character and its combining characters.
_LOCAL_NORMALIZERS = frozenset(
    {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
     "StripAccents"}
)  # fmt: skip

#: Pre-tokenizers that split at whitespace, and those that split further by single characters.
_SPLIT_AT_SPACES = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
_SPLIT_FURTHER = frozenset({"Digits", "Punctuation"})

#: The patterns of GPT-2 and of Llama 3 and Qwen 2: matches have spaces only at their start.
_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)

_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})


def can_cut(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a tokenizer with this tokenizer.json can be given a text in parts."""
    model = tokenizer["model"]
    return (
        model.get("type") in _MODELS
        and not model.get("dropout")
        and _keeps_places(tokenizer.get("normalizer"))
        and _splits_at_places(tokenizer.get("pre_tokenizer"))
        # An added token that includes the space after it would miss it at the end of a part.
        and not any(
            " " in token["content"] or token["rstrip"]
            for token in tokenizer.get("added_tokens") or ()
        )
    )


def cut(text: Rendered, size: int) -> list[Span]:
    """Split a text into parts of about ``size`` characters; longer where no split is valid."""
    parts = []
    start = 0
    while (found := _PLACE.search(text.text, start + size)) is not None:
        end = found.start()
        while found is not None and any(abs(end - at) < _MARGIN for at in text.prompt):
            found = _PLACE.search(text.text, end + 1)
            end = len(text.text) if found is None else found.start()
        if found is None:
            break
        parts.append(Span(start, end))
        start = end
    return [*parts, Span(start, len(text.text))]


def _steps(step: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [one for member in step[members] for one in _steps(member, members)]


def _keeps_places(normalizer: Mapping[str, Any] | None) -> bool:
    return all(
        step["type"] in _LOCAL_NORMALIZERS
        or (step["type"] == "Strip" and not step["strip_left"])
        or (step["type"] == "Replace" and step["pattern"] == {"Regex": " {2,}"})
        for step in _steps(normalizer, "normalizers")
    )


def _splits_at_places(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    steps = _steps(pre_tokenizer, "pretokenizers")
    splits = [
        step["type"] in _SPLIT_AT_SPACES
        or (step["type"] == "Metaspace" and step.get("split", True))
        or (step["type"] == "ByteLevel" and step.get("use_regex", True))
        or (
            step["type"] == "Split"
            and step["pattern"].get("Regex") in _PATTERNS
            and step["behavior"] == "Isolated"
            and not step["invert"]
        )
        for step in steps
    ]
    return any(splits) and all(
        is_split or step["type"] in _SPLIT_FURTHER or step["type"] == "ByteLevel"
        for step, is_split in zip(steps, splits, strict=True)
    )
