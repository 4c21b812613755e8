"""Collects what is stored in the repository: small files, in one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from translation_study import corpus
from translation_study.evaluation import read_rows, write_rows
from translation_study.methods import UNTRAINED, methods
from translation_study.stages import Run
from translation_study.training_stages import sentences

__all__ = ["collect", "finished"]

#: What is kept of each step of a trainer's log.
_LOGGED = (
    "step", "reward", "reward_std", "kl", "completions/mean_length", "alarm/holistic",
    "alarm/admitted", "alarm/failed", "step_time",
)  # fmt: skip


def finished(run: Run) -> Iterator[tuple[str, int, Path]]:
    """Yield method, seed and folder of each policy that is scored."""
    if (run.folder / "none" / "stage.json").exists():
        yield UNTRAINED, 0, run.folder / "none"
    for method in methods(run.found("select")["chosen"], run.sizes.aspect_weight):
        for seed in run.sizes.seeds:
            folder = run.folder / "grpo" / f"{method.name}-{seed}"
            if (folder / "stage.json").exists():
                yield method.title, seed, folder


def collect(run: Run, stored: Path) -> None:
    """Write the folder anew from the stages that are done."""
    shutil.rmtree(stored, ignore_errors=True)
    stored.mkdir(parents=True)
    (stored / "settings.json").write_text((run.folder / "settings.json").read_text())
    (stored / "stages.json").write_text(json.dumps(run.records(), indent=1) + "\n")
    corpus.write(sentences(run, "test"), stored / "test.jsonl")
    # The records of the stages are in stages.json; copies would count as stages of their own.
    unused = shutil.ignore_patterns("stage.json", "*.json.*", "*.jsonl", "report.html")
    for name in ("policy", "recipe/holistic", "recipe/errors"):
        shutil.copytree(run.folder / name, stored / name, ignore=unused)
    shutil.copy(run.folder / "recipe" / "recipe.toml", stored / "recipe" / "recipe.toml")
    for name in ("select", "calibrate", "evaluate"):
        if (run.folder / name).exists():
            shutil.copytree(run.folder / name, stored / name, ignore=unused)
    for method, seed, folder in finished(run):
        about = {"method": method, "seed": seed}
        file = f"{folder.name}.jsonl.gz"
        write_rows(stored / "generations" / file, _with(about, read_rows(folder / "test.jsonl")))
        if (folder / "log.jsonl").exists():
            write_rows(stored / "curves" / file, _with(about, read_rows(folder / "curve.jsonl")))
            log = ({name: row[name] for name in _LOGGED if name in row}
                   for row in read_rows(folder / "log.jsonl"))  # fmt: skip
            write_rows(stored / "logs" / file, log)
            shutil.copytree(
                folder / "adapter",
                stored / "adapters" / folder.name,
                ignore=shutil.ignore_patterns("*.md"),
            )


def _with(about: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Put method and seed into the first row, which stands for the whole file."""
    for at, row in enumerate(rows):
        yield {**about, **row} if at == 0 else row
