"""Questions with passages, and answers: texts of realistic lengths for the aspects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from work import Sample, Twins

from alarm_models.preprocessing.segmentation import sentences

__all__ = ["GOLDEN", "group", "read", "singles"]

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"

#: Longest text that fits every model here, in characters.
_MOST = 6000


def read(path: Path) -> list[tuple[str, str]]:
    """Read prompts with one answer each.

    Reads FineGrainedRLHF's list of prompts (``text`` and ``answer``), or golden items, one per line
    (``prompt`` and ``response``). Skips texts with a separator, without a sentence, or with over
    6,000 characters.
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


def singles(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> Twins:
    """Draw prompts with their answers."""
    chosen = Random(str(seed)).choices(pairs, k=count)
    return _twins([(prompt, [answer]) for prompt, answer in chosen], seed)


def group(pairs: Sequence[tuple[str, str]], size: int, seed: int) -> Twins:
    """Draw a prompt and ``size`` answers, which may belong to other prompts."""
    choose = Random(str(seed))
    prompt, _ = choose.choice(pairs)
    return _twins([(prompt, [answer for _, answer in choose.choices(pairs, k=size)])], seed)


def _twins(prompts: Sequence[tuple[str, list[str]]], seed: int) -> Twins:
    def twin(number: int) -> list[Sample]:
        # A distinct first word, so that no prefix cached in another round, or for the other twin,
        # matches this prompt.
        first = f"{number}{seed:04}"
        return [
            _sample(f"{first} {prompt}", answer)
            for prompt, answers in prompts
            for answer in answers
        ]

    return twin(0), twin(1)


def _sample(prompt: str, answer: str) -> Sample:
    return Sample(prompt, answer, tuple((span.start, span.end) for span in sentences(answer)))
