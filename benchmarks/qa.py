"""Questions with their passages, and answers: the lengths that the aspects meet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from work import Sample, Twins

from alarm_models.preprocessing.segmentation import sentences

__all__ = ["GOLDEN", "group", "read", "singles"]

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


def singles(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> Twins:
    """Choose prompts with their answers."""
    chosen = Random(seed).choices(pairs, k=count)
    return _twins([(prompt, [answer]) for prompt, answer in chosen], seed)


def group(pairs: Sequence[tuple[str, str]], size: int, seed: int) -> Twins:
    """Choose a prompt and ``size`` answers, which may be another prompt's."""
    choose = Random(seed)
    prompt, _ = choose.choice(pairs)
    return _twins([(prompt, [answer for _, answer in choose.choices(pairs, k=size)])], seed)


def _twins(prompts: Sequence[tuple[str, list[str]]], seed: int) -> Twins:
    def twin(number: int) -> list[Sample]:
        # A first word of its own: what a server remembers of a prompt from another round, which
        # may have drawn it too, or from the other twin, is no beginning of this one.
        first = f"{number}{seed:04}"
        return [
            _sample(f"{first} {prompt}", answer)
            for prompt, answers in prompts
            for answer in answers
        ]

    return twin(0), twin(1)


def _sample(prompt: str, answer: str) -> Sample:
    return Sample(prompt, answer, tuple((span.start, span.end) for span in sentences(answer)))
