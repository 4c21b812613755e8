"""The stages that need a server: choosing the learning rate, training, and scoring."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from translation_study import policy
from translation_study.corpus import Sentence
from translation_study.evaluation import read_rows, require_agreement, rewarded, write_rows
from translation_study.grpo import train
from translation_study.methods import Method, methods
from translation_study.metrics import GOLD, corpus_scores
from translation_study.serving import alarm, served
from translation_study.stages import Run
from translation_study.training_stages import sentences

__all__ = ["reinforce"]

#: Seed of the samples by which policies are judged, the same for each method.
_SEED = 4000


def reinforce(run: Run) -> None:
    """Train with each method and seed, and score what the policies write."""
    recipe = run.folder / "recipe" / "recipe.toml"
    chosen = run.found("select")["chosen"]
    every = methods(chosen, run.sizes.aspect_weight)
    with served(recipe, run.folder / "server.log") as url:
        run.stage("check", lambda _: _checked(run, url))
        for rate in run.sizes.rates:
            run.stage(
                f"rates/{rate:g}",
                lambda folder, rate=rate: _trained(run, every[0], 0, rate, url, folder),
            )
        rate = _best_rate(run)
        run.stage("none", lambda folder: _evaluated(run, run.folder / "policy", url, folder))
        # The main methods first, seed by seed, so that an unfinished run has whole seeds of them.
        main = [method for method in every if method.part == "main"]
        _run_each(run, main, rate, url)
        run.stage("evaluate", lambda folder: _compared(run, main, url, folder))
        for part in ("control", "ablation"):
            _run_each(run, [method for method in every if method.part == part], rate, url)


def _run_each(run: Run, every: Sequence[Method], rate: float, url: str) -> None:
    for seed in run.sizes.seeds:
        for method in every:
            run.stage(
                f"grpo/{method.name}-{seed}",
                lambda folder, method=method, seed=seed: _run(run, method, seed, rate, url, folder),
            )


def _checked(run: Run, url: str) -> dict[str, Any]:
    part = sentences(run, "development")
    references = [one.references[0] for one in part]
    found = require_agreement(url, run.folder / "recipe", [one.prompt for one in part], references)
    return {name: float(f"{one:.1e}") for name, one in found.items()}


def _compared(run: Run, every: Sequence[Method], url: str, folder: Path) -> None:
    """Run `alarm evaluate` on the first sample of each prompt, of all seeds of the main methods."""
    prompts = {one.id: one.prompt for one in sentences(run, "test")}
    sources = {"none": [run.folder / "none"]} | {
        one.name: [run.folder / "grpo" / f"{one.name}-{seed}" for seed in run.sizes.seeds]
        for one in every
    }
    for name, folders in sources.items():
        every_sample = [row for one in folders for row in read_rows(one / "test.jsonl")]
        rows = every_sample[:: run.sizes.test_samples]
        write_rows(
            folder / f"{name}.jsonl",
            (
                {"id": r["id"], "prompt": prompts[r["id"]], "completion": r["completion"]}
                for r in rows
            ),
        )
    alarm(
        "evaluate", *(f"{name}={folder / name}.jsonl" for name in sources),
        "--recipe", str(run.folder / "recipe" / "recipe.toml"), "--url", url,
        "--draws", str(run.sizes.draws), "--out", str(folder),
    )  # fmt: skip


def _best_rate(run: Run) -> float:
    """Return the rate at which `holistic_only` has the best samples of the development set.

    Chosen for the method that the others are compared with, before any of the others runs.
    """
    return max(run.sizes.rates, key=lambda rate: run.found(f"rates/{rate:g}")["development"][GOLD])


def _run(
    run: Run, method: Method, seed: int, rate: float, url: str, folder: Path
) -> dict[str, Any]:
    found = _trained(run, method, seed, rate, url, folder)
    return {**found, **_evaluated(run, folder / "policy", url, folder)}


def _trained(
    run: Run, method: Method, seed: int, rate: float, url: str, folder: Path
) -> dict[str, Any]:
    followed = sentences(run, "test")[: run.sizes.curve_prompts]
    log = train(
        method, seed, rate, run.folder / "policy", sentences(run, "training"), followed, url,
        folder, run.sizes,
    )  # fmt: skip
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    _score_curve(followed, url, folder / "curve.jsonl")
    part = _repeated(run, sentences(run, "development"))
    scores = _corpus_scores(run, folder / "policy", part, _SEED)[1]
    width = max(1, len(log) // 8)
    return {
        "method": method.title,
        "seed": seed,
        "rate": rate,
        "overrides": method.overrides,
        "reward": [round(_mean(log[:width], "reward"), 4), round(_mean(log[-width:], "reward"), 4)],
        "failed": round(_mean(log, "alarm/failed"), 4),
        "step_seconds": round(_mean(log, "step_time"), 2),
        "development": scores,
    }


def _mean(log: Sequence[dict[str, Any]], name: str) -> float:
    values = [entry[name] for entry in log if name in entry]
    return sum(values) / len(values) if values else float("nan")


def _score_curve(followed: Sequence[Sentence], url: str, file: Path) -> None:
    """Add the scores of the server to the samples of a curve."""
    rows = read_rows(file)
    prompts = {one.id: one.prompt for one in followed}
    scores = rewarded(
        url, [prompts[row["id"]] for row in rows], [row["completion"] for row in rows]
    )
    write_rows(file, ({**row, "z": one["z"]} for row, one in zip(rows, scores, strict=True)))


def _evaluated(run: Run, trained: Path, url: str, folder: Path) -> dict[str, Any]:
    """Sample translations of the test set; write them with their scores."""
    part = _repeated(run, sentences(run, "test"))
    texts, found = _corpus_scores(run, trained, part, _SEED)
    scores = rewarded(url, [one.prompt for one in part], texts)
    rows = (
        {"id": one.id, "completion": text, **score}
        for one, text, score in zip(part, texts, scores, strict=True)
    )
    write_rows(folder / "test.jsonl", rows)
    _, greedy = _corpus_scores(run, trained, sentences(run, "test"), None)
    return {"test": found, "test_greedy": greedy}


def _repeated(run: Run, part: Sequence[Sentence]) -> list[Sentence]:
    return [one for one in part for _ in range(run.sizes.test_samples)]


def _corpus_scores(
    run: Run, trained: Path, part: Sequence[Sentence], seed: int | None
) -> tuple[list[str], dict[str, float]]:
    """Return translations, sampled with a seed or greedy without, and the metrics of all."""
    model, tokenizer = policy.load(trained)
    prompts = [one.prompt for one in part]
    found = policy.translate(model, tokenizer, prompts, new_tokens=run.sizes.new_tokens, seed=seed)
    texts = [one.text for one in found]
    scores = corpus_scores(texts, [one.references for one in part])
    return texts, {name: round(score, 2) for name, score in scores.items()}
