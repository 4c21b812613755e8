"""Reads stored generations and curves, and computes what tables and pictures show."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from translation_study import corpus
from translation_study.evaluation import read_rows
from translation_study.intervals import Values
from translation_study.metrics import GOLD, METRICS, corpus_scores, repetition, sentence_scores
from translation_study.recipe import ASPECTS

__all__ = ["COLUMNS", "LOWER", "CurvePoint", "Results", "read_results"]

#: What each translation is judged by: reference metrics, rewards, and properties of the text.
COLUMNS = (*METRICS, "z", *ASPECTS, "length", "repetition")

#: Columns of which a lower number wins.
LOWER = frozenset({"TER", "grammar", "repetition"})


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Means over the samples of a policy at a step: distance, proxy and gold."""

    step: int
    kl: float
    z: float
    gold: float


@dataclass(frozen=True, slots=True)
class Results:
    """The results by method.

    `values[method][column]` is `[seeds, prompts, samples]`, `corpus[method][metric]` has one number
    per seed, `curves[method]` one list of points per seed.
    """

    settings: dict[str, Any]
    stages: list[dict[str, Any]]
    values: dict[str, dict[str, Values]]
    corpus: dict[str, dict[str, list[float]]]
    admitted: dict[str, float]
    curves: dict[str, list[list[CurvePoint]]]
    examples: list[tuple[str, str, dict[str, str]]]

    def found(self, stage: str) -> dict[str, Any]:
        """Return what a stage found."""
        record = next(one for one in self.stages if one["stage"] == stage)
        found: dict[str, Any] = record["found"]
        return found


def read_results(stored: Path) -> Results:
    """Read a folder that `collect` wrote; references are those of its test sentences."""
    sentences = corpus.read(stored / "test.jsonl")
    references = {one.id: one.references for one in sentences}
    values: dict[str, dict[str, list[NDArray[np.float64]]]] = defaultdict(lambda: defaultdict(list))
    totals: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    admitted: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for file in sorted((stored / "generations").glob("*.jsonl.gz")):
        rows = read_rows(file)
        method = rows[0]["method"]
        written = [row["completion"] for row in rows]
        known = [references[row["id"]] for row in rows]
        texts.setdefault(method, written[:: len(rows) // len(sentences)])
        for name, score in corpus_scores(written, known).items():
            totals[method][name].append(score)
        columns = sentence_scores(written, known)
        columns["length"] = [len(text.split()) for text in written]
        columns["repetition"] = [repetition(text) for text in written]
        for name in ("z", *ASPECTS):
            columns[name] = [np.nan if row[name] is None else row[name] for row in rows]
        for name in COLUMNS:
            values[method][name].append(np.reshape(columns[name], (len(sentences), -1)))
        admitted[method].append(sum(row["admitted"] for row in rows) / len(rows))
    return Results(
        settings=json.loads((stored / "settings.json").read_text()),
        stages=json.loads((stored / "stages.json").read_text()),
        values={
            method: {name: np.asarray(rows, float) for name, rows in columns.items()}
            for method, columns in values.items()
        },
        corpus={method: dict(scores) for method, scores in totals.items()},
        admitted={method: sum(shares) / len(shares) for method, shares in admitted.items()},
        curves=_curves(stored, references),
        examples=[
            (one.source, one.references[0], {method: own[at] for method, own in texts.items()})
            for at, one in enumerate(sentences[:8])
        ],
    )


def _curves(
    stored: Path, references: dict[str, Sequence[str]]
) -> dict[str, list[list[CurvePoint]]]:
    found: dict[str, list[list[CurvePoint]]] = defaultdict(list)
    for file in sorted((stored / "curves").glob("*.jsonl.gz")):
        rows = read_rows(file)
        by_step: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            by_step[row["step"]].append(row)
        points = []
        for step, own in sorted(by_step.items()):
            known = [references[row["id"]] for row in own]
            scores = sentence_scores([row["completion"] for row in own], known, (GOLD,))
            points.append(
                CurvePoint(
                    step,
                    float(np.mean([row["kl"] for row in own])),
                    float(np.mean([row["z"] for row in own])),
                    float(np.mean(scores[GOLD])),
                )
            )
        found[rows[0]["method"]].append(points)
    return dict(found)
