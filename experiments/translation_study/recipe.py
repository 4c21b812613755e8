"""The recipe of the study: written, then changed by `alarm select` and `alarm calibrate`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from translation_study.corpus import Sentence
from translation_study.serving import alarm
from translation_study.settings import Sizes

__all__ = ["ASPECTS", "calibrate", "chosen_aspect", "select", "write_base"]

ASPECTS = ("grammar", "readability", "language", "errors")

_TEMPLATE = """\
# Spanish to English: an imperfect holistic model, and aspects to choose from.

name = "{name}"

[models.holistic]
kind = "sequence"
checkpoint = "./holistic"
template = "{{prompt}}{{completion}}"
suffix = "</s>"
head = "score"
pooling = "mean"
dtype = "float32"

[models.grammar]
kind = "grammar"
engine = "harper"
language = "en-US"
timeout_s = 120.0

[models.readability]
kind = "readability"

[models.language]
kind = "language"
target = "en"
languages = ["en", "es"]

[models.errors]
kind = "segments"
checkpoint = "./errors"
template = "{{prompt}}"
segmenter = "words"
pooling = "mean"
positive_label = "ok"
negative_label = "error"
dtype = "float32"

[holistic]
model = "holistic"
weight = {holistic_weight}
mean = 0.0
std = 1.0

[hierarchy]
rule = "hierarchical"
threshold = 0.0
temperature = {gate_temperature}

[aspects.grammar]
model = "grammar"
weight = {aspect_weight}
placement = "tokens"
positive = 0.0
negative = -1.0

[aspects.readability]
model = "readability"
weight = {aspect_weight}
mean = 0.0
std = 1.0

[aspects.language]
model = "language"
weight = {aspect_weight}

[aspects.errors]
model = "errors"
weight = {aspect_weight}
positive = 0.5
negative = -0.5
"""


def write_base(file: Path, sizes: Sizes) -> None:
    """Write the recipe with all aspects and without constants; `file` is beside the models."""
    file.write_text(
        _TEMPLATE.format(
            name=file.stem,
            holistic_weight=sizes.holistic_weight,
            aspect_weight=sizes.aspect_weight,
            gate_temperature=sizes.gate_temperature,
        )
    )


def select(
    base: Path,
    sentences: Sequence[Sentence],
    samples: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Sequence[float]]],
    out: Path,
    sizes: Sizes,
) -> dict[str, Any]:
    """Run `alarm select` on several samples of each prompt; `values` are further scores of them."""
    file = out / "samples.jsonl"
    rows = (
        {
            "id": sentence.id,
            "prompt": sentence.prompt,
            "completions": list(texts),
            "values": {name: list(scores[at]) for name, scores in values.items()},
        }
        for at, (sentence, texts) in enumerate(zip(sentences, samples, strict=True))
    )
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    alarm(
        "select", str(file), "--recipe", str(base), "--draws", str(sizes.draws),
        "--write", str(base.with_name("selected.toml")), "--out", str(out),
    )  # fmt: skip
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def chosen_aspect(selected: Path, result: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the aspect that `alarm select` chose, and whether its interval is below 50 %.

    Where it chose none, the aspect of the highest tau-b stands in, so that the study can go on.
    """
    table = tomllib.loads(selected.read_text())
    chosen = [name for name in ASPECTS if table["aspects"][name]["weight"] != 0]
    if len(chosen) == 1:
        return chosen[0], True
    return max(ASPECTS, key=lambda name: tau_b(result, name)), False


def tau_b(result: Mapping[str, Any], name: str) -> float:
    """Return an aspect's tau-b from the result of `alarm select`."""
    value = result["consistencies"][0]["agreements"][name]["tau_b"]["value"]
    return -1.0 if value is None else float(value)


def calibrate(selected: Path, samples: Path, out: Path, sizes: Sizes) -> dict[str, Any]:
    """Run `alarm calibrate` on samples of the policy; write `recipe.toml`, return its constants."""
    written = selected.with_name("recipe.toml")
    alarm(
        "calibrate", str(samples), "--recipe", str(selected), "--admit", str(sizes.admitted),
        "--write", str(written), "--out", str(out),
    )  # fmt: skip
    table = tomllib.loads(written.read_text())
    constants = {name: round(table["holistic"][name], 4) for name in ("mean", "std")}
    return {**constants, "threshold": round(table["hierarchy"]["threshold"], 4)}
