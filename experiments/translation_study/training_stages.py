"""The stages before reinforcement learning: corpus, policy, reward models, recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from translation_study import corpus, error_spans, policy, preferences, recipe
from translation_study.corpus import Sentence
from translation_study.metrics import GOLD, corpus_scores, sentence_scores
from translation_study.stages import Run

__all__ = ["prepare"]

#: Seeds of what is sampled before reinforcement learning.
_PREFERENCE_SEED, _STUDY_SEED, _WORDS_SEED = 1000, 2000, 5000
_HELD_OUT_SHARE = 0.1


def prepare(run: Run, archive: Path) -> None:
    """Do all stages up to the calibrated recipe; those that are done are skipped."""
    run.stage("corpus", lambda folder: _split(run, archive, folder))
    run.stage("policy", lambda folder: _policy(run, folder))
    run.stage("preferences", lambda folder: _preferences(run, folder))
    run.stage("recipe/errors", lambda folder: _errors(run, folder))
    run.stage("words", lambda folder: _words(run, folder))
    run.stage("recipe/holistic", lambda folder: _holistic(run, folder))
    run.stage("select", lambda folder: _select(run, folder))
    run.stage("calibrate", lambda folder: _calibrate(run, folder))


def _split(run: Run, archive: Path, folder: Path) -> dict[str, Any]:
    parts = corpus.split(corpus.read_pairs(archive), run.sizes)
    for name, sentences in parts.items():
        corpus.write(sentences, folder / f"{name}.jsonl")
    return {name: len(sentences) for name, sentences in parts.items()}


def sentences(run: Run, part: str) -> list[Sentence]:
    """Return a part of the corpus."""
    return corpus.read(run.folder / "corpus" / f"{part}.jsonl")


def _prompted(part: Sequence[Sentence]) -> list[tuple[str, str]]:
    return [(one.prompt, reference) for one in part for reference in one.references]


def _policy(run: Run, folder: Path) -> dict[str, Any]:
    pairs = _prompted(sentences(run, "policy"))
    texts = [text for pair in pairs for text in pair]
    tokenizer = policy.train_tokenizer(texts, run.sizes.vocabulary)
    model, losses = policy.supervise(pairs, tokenizer, run.sizes)
    policy.save(model, tokenizer, folder)
    (folder / "losses.json").write_text(json.dumps([round(loss, 4) for loss in losses]))
    model, tokenizer = policy.load(folder)
    part = sentences(run, "development")
    greedy = policy.translate(
        model, tokenizer, [one.prompt for one in part], new_tokens=run.sizes.new_tokens
    )
    scores = corpus_scores([one.text for one in greedy], [one.references for one in part])
    return {
        "parameters": model.num_parameters(),
        "loss": round(sum(losses[-50:]) / len(losses[-50:]), 3),
        "development": {name: round(score, 2) for name, score in scores.items()},
    }


def sampled(
    run: Run, part: Sequence[Sentence], seed: int
) -> tuple[list[list[str]], list[list[float]]]:
    """Return samples of the supervised policy for each sentence, and their gold metric."""
    model, tokenizer = policy.load(run.folder / "policy")
    number = run.sizes.samples_per_prompt
    found = policy.translate(
        model,
        tokenizer,
        [one.prompt for one in part for _ in range(number)],
        new_tokens=run.sizes.new_tokens,
        seed=seed,
    )
    texts = [one.text for one in found]
    references = [one.references for one in part for _ in range(number)]
    scores = sentence_scores(texts, references, (GOLD,))[GOLD]
    rows = range(0, len(texts), number)
    return [texts[at : at + number] for at in rows], [scores[at : at + number] for at in rows]


def _preferences(run: Run, folder: Path) -> dict[str, Any]:
    part = sentences(run, "preference")
    texts, scores = sampled(run, part, _PREFERENCE_SEED)
    pairs = preferences.label([one.prompt for one in part], texts, scores, run.sizes.flipped)
    rows = (
        {
            "prompt": pair.prompt,
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "flipped": pair.flipped,
        }
        for pair in pairs
    )
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "pairs.jsonl").write_text("".join(lines))
    flat = [score for row in scores for score in row]
    return {
        "pairs": len(pairs),
        "flipped": sum(pair.flipped for pair in pairs),
        f"sampled_{GOLD}": round(sum(flat) / len(flat), 2),
    }


def _holistic(run: Run, folder: Path) -> dict[str, Any]:
    file = run.folder / "preferences" / "pairs.jsonl"
    pairs = [preferences.Pair(**json.loads(line)) for line in file.read_text().splitlines()]
    cut = len(pairs) - int(_HELD_OUT_SHARE * len(pairs))
    while pairs[cut].prompt == pairs[cut - 1].prompt:  # all pairs of a prompt on one side
        cut += 1
    _, tokenizer = policy.load(run.folder / "policy")
    model = preferences.train_holistic(run.folder / "words", tokenizer, pairs[:cut], run.sizes)
    policy.save(model, tokenizer, folder)
    model = model.float()
    held_out = pairs[cut:]
    true = [
        preferences.Pair(one.prompt, one.rejected, one.chosen, False) if one.flipped else one
        for one in held_out
    ]
    return {
        "held_out_pairs": len(held_out),
        "accuracy_labels": round(preferences.accuracy(model, tokenizer, held_out), 3),
        "accuracy_true": round(preferences.accuracy(model, tokenizer, true), 3),
        "accuracy_training": round(preferences.accuracy(model, tokenizer, pairs[:1000]), 3),
    }


def _errors(run: Run, folder: Path) -> dict[str, Any]:
    pairs = _prompted(sentences(run, "policy"))
    stride = max(1, len(pairs) // run.sizes.corrupted_references)
    vocabulary = [word for _, english in pairs[:20000] for word in english.split()]
    marked = error_spans.corrupt(pairs[::stride], vocabulary, seed=0)
    held_out = error_spans.corrupt(_prompted(sentences(run, "development")), vocabulary, seed=1)
    _, tokenizer = policy.load(run.folder / "policy")
    model = error_spans.train_errors(
        run.folder / "policy",
        tokenizer,
        marked,
        epochs=run.sizes.error_epochs,
        rate=run.sizes.error_rate,
    )
    policy.save(model, tokenizer, folder)
    model = model.float()
    found = error_spans.detection(model, tokenizer, held_out)
    return {"references": len(marked), **{name: round(one, 3) for name, one in found.items()}}


def _words(run: Run, folder: Path) -> dict[str, Any]:
    """Train the start of the holistic model, on the policy's samples of its own sentences."""
    part = sentences(run, "policy")
    part = part[:: max(1, len(part) // run.sizes.word_samples)]
    model, tokenizer = policy.load(run.folder / "policy")
    found = policy.translate(
        model,
        tokenizer,
        [one.prompt for one in part],
        new_tokens=run.sizes.new_tokens,
        seed=_WORDS_SEED,
    )
    marked = [
        error_spans.mark(one.prompt, sample.text, one.references[0])
        for one, sample in zip(part, found, strict=True)
        if sample.text.strip()
    ]
    cut = len(marked) - len(marked) // 20
    trained = error_spans.train_errors(
        run.folder / "recipe" / "errors",
        tokenizer,
        marked[:cut],
        epochs=run.sizes.word_epochs,
        rate=run.sizes.error_rate,
    )
    policy.save(trained, tokenizer, folder)
    measured = error_spans.detection(trained.float(), tokenizer, marked[cut:])
    return {"samples": cut, **{name: round(one, 3) for name, one in measured.items()}}


def _select(run: Run, folder: Path) -> dict[str, Any]:
    base = run.folder / "recipe" / "base.toml"
    recipe.write_base(base, run.sizes)
    part = sentences(run, "study")
    texts, scores = sampled(run, part, _STUDY_SEED)
    result = recipe.select(base, part, texts, {GOLD: scores}, folder, run.sizes)
    chosen, is_chosen = recipe.chosen_aspect(base.with_name("selected.toml"), result)
    return {"chosen": chosen, "by_alarm_select": is_chosen}


def _calibrate(run: Run, folder: Path) -> dict[str, Any]:
    selected = run.folder / "recipe" / "selected.toml"
    return recipe.calibrate(selected, run.folder / "select" / "samples.jsonl", folder, run.sizes)
