"""Questions with their passages, and answers: the lengths that the aspects meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from work import Sample

from alarm_models.segmentation import sentences

__all__ = ["GOLDEN", "groups", "read", "singles"]

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"

#: Texts that fit every model here, in characters.
_MOST = 6000


def read(path: Path) -> list[tuple[str, str]]:
    """Read prompts with an answer each.

    From FineGrainedRLHF's list of prompts (``text`` and ``answer``), or from golden items, one a
    line (``prompt`` and ``response``). Texts that hold a separator, have no sentence, or are over
    6,000 characters are left out.
    """
    content = path.read_text()
    if content.lstrip().startswith("["):
        pairs = [(one["text"], one["answer"][0]) for one in json.loads(content)]
    else:
        items = [json.loads(line) for line in content.splitlines()]
        pairs = [(one["prompt"], one["response"]) for one in items]
    return [
        (prompt, answer)
        for prompt, answer in pairs
        if sentences(answer) and "</s>" not in prompt + answer and len(prompt + answer) < _MOST
    ]


def singles(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> list[Sample]:
    """Choose prompts with their answers."""
    return [_sample(prompt, answer) for prompt, answer in Random(seed).choices(pairs, k=count)]


def groups(pairs: Sequence[tuple[str, str]], count: int, size: int, seed: int) -> list[Sample]:
    """Choose prompts, each with ``size`` answers, which may be another prompt's."""
    choose = Random(seed)
    return [
        _sample(prompt, answer)
        for prompt, _ in choose.choices(pairs, k=count)
        for _, answer in choose.choices(pairs, k=size)
    ]


def _sample(prompt: str, answer: str) -> Sample:
    return Sample(prompt, answer, tuple((span.start, span.end) for span in sentences(answer)))
