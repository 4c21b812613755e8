"""Scores of translations by the server, as stored beside each translation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from alarm_client import AlarmClient, Sample
from translation_study.error_spans import Marked, margins
from translation_study.preferences import scores
from translation_study.recipe import ASPECTS

__all__ = ["read_rows", "require_agreement", "rewarded", "write_rows"]

_TRIES = 5
_PART = 256
_TOLERANCE = 1e-3


def rewarded(url: str, prompts: Sequence[str], completions: Sequence[str]) -> list[dict[str, Any]]:
    """Return the holistic score of each translation, as z and raw, and each aspect's score.

    A translation whose score fails is asked for again, and raises at the fifth failure.
    """
    samples = [Sample(prompt=p, completion=c) for p, c in zip(prompts, completions, strict=True)]
    with AlarmClient(url) as client:
        found: dict[int, dict[str, Any]] = {}
        for at in range(0, len(samples), _PART):
            found |= _part(client, samples, range(at, min(at + _PART, len(samples))))
    return [found[at] for at in range(len(samples))]


def _part(
    client: AlarmClient, samples: Sequence[Sample], places: Iterable[int]
) -> dict[int, dict[str, Any]]:
    left = list(places)
    found: dict[int, dict[str, Any]] = {}
    for _ in range(_TRIES):
        chosen = [samples[at] for at in left]
        rewards = client.hierarchical_reward(chosen, aspects="all").rewards
        aspects = {name: client.score(chosen, model=name).scores for name in ASPECTS}
        for row, at in enumerate(left):
            own = [rewards[row], *(aspects[name][row] for name in ASPECTS)]
            if all(one.error is None for one in own):
                found[at] = {
                    "holistic": rewards[row].holistic.score,
                    "z": rewards[row].holistic.normalized,
                    "admitted": rewards[row].admitted,
                    **{name: aspects[name][row].score for name in ASPECTS},
                }
        left = [at for at in left if at not in found]
        if not left:
            return found
    raise SystemExit(f"the server failed {len(left)} samples: {rewards[-1].error}")


def require_agreement(
    url: str, recipe: Path, prompts: Sequence[str], completions: Sequence[str]
) -> dict[str, float]:
    """Return the largest differences between the server's scores and the training code's.

    Ends the run if one is over 0.001: the server would read texts in another way than the models
    were trained on.
    """
    pairs = list(zip(prompts, completions, strict=True))
    samples = [Sample(prompt=prompt, completion=text) for prompt, text in pairs]
    marked = [Marked(prompt, tuple(text.split()), ()) for prompt, text in pairs]
    tokenizer = AutoTokenizer.from_pretrained(recipe / "holistic")
    whole = AutoModelForSequenceClassification.from_pretrained(
        recipe / "holistic", dtype=torch.float32
    )
    words = AutoModelForTokenClassification.from_pretrained(recipe / "errors", dtype=torch.float32)
    with AlarmClient(url) as client:
        served = {
            "holistic": [one.score for one in client.score(samples, model="holistic").scores],
            "errors": [
                segment.score
                for one in client.score(samples, model="errors").scores
                for segment in one.segments
            ],
        }
    own = {
        "holistic": scores(whole.eval(), tokenizer, pairs),
        "errors": margins(words.eval(), tokenizer, marked),
    }
    found = {
        name: max(abs(a - b) for a, b in zip(served[name], own[name], strict=True))
        for name in served
    }
    if max(found.values()) > _TOLERANCE:
        raise SystemExit(f"the server's scores differ from the training code's by {found}")
    return found


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, numbers rounded to six digits after the point; compressed for `.gz`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_rounded(row), ensure_ascii=False) + "\n" for row in rows)
    text = "".join(lines).encode()
    file.write_bytes(gzip.compress(text, mtime=0) if file.suffix == ".gz" else text)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines, compressed ones from `.gz`."""
    data = file.read_bytes()
    text = gzip.decompress(data) if file.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()
    }
