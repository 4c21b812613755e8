"""A recipe is served only if its stored samples score as before."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from processes import recipe_of
from tiny import Checkpoint
from tolerance import printed

import alarm_models
from alarm_models.errors import SampleError
from alarm_models.recipe.loader import load_recipe
from alarm_models.types import Score, SegmentScore, Span
from alarm_service.api.app import create_engine
from alarm_service.cli.main import main
from alarm_service.engine.golden_check import (
    GoldenError,
    StoredScore,
    difference,
    read_golden_scores,
)
from alarm_service.settings import Settings

MINI = Path(alarm_models.__file__).parent / "recipes"
SAMPLES = [
    {"prompt": "The fox?", "completion": "The dog.", "id": "fox"},
    {"prompt": "The fox?", "completion": "The quick brown fox jumps over the lazy dog."},
]


@pytest.fixture
def recipe(llama: Checkpoint, tmp_path: Path) -> Path:
    """A recipe of a checkpoint of its own, with a record of its scores."""
    shutil.copytree(llama.folder, tmp_path / "weights")
    file = tmp_path / "tiny.toml"
    file.write_text('parity = "parity.jsonl"\n' + recipe_of(tmp_path / "weights"))
    assert record(file, SAMPLES) == 0
    return file


def record(file: Path, samples: list[dict[str, Any]]) -> int:
    lines = file.with_name("samples.jsonl")
    lines.write_text("".join(f"{json.dumps(sample)}\n" for sample in samples))
    out = str(file.with_name("parity.jsonl"))
    flags = ("--recipe", str(file), "--device", "cpu")
    return main(["record", str(lines), "--out", out, *flags])


async def failure_of(recipe: Path | str, *settings: str) -> str | None:
    """Load a recipe as a server does; return why it is not served."""
    engine = create_engine([load_recipe(str(recipe), settings)], Settings(device="cpu"))
    try:
        await engine.start()
        return None if engine.life.failure is None else str(engine.life.failure)
    finally:
        await engine.close()


@contextmanager
def line_changed(recipe: Path, number: int) -> Iterator[dict[str, Any]]:
    """Yield the object of a line of the stored scores, and write it back changed."""
    file = recipe.with_name("parity.jsonl")
    lines = file.read_text().splitlines()
    line = json.loads(lines[number])
    yield line
    lines[number] = json.dumps(line)
    file.write_text("\n".join(lines))


async def test_golden_check_recorded_scores_pass(recipe: Path) -> None:
    stored = read_golden_scores(recipe.with_name("parity.jsonl"))
    assert stored.origin.recipe == "tiny"
    assert stored.origin.models["rm"].dtype == "float32"
    assert [one.sample.completion for one in stored.samples] == [
        one["completion"] for one in SAMPLES
    ]
    assert await failure_of(recipe) is None


async def test_golden_check_altered_weights_fail(recipe: Path) -> None:
    shutil.rmtree(recipe.with_name("weights"))
    tiny.sequence_classifier("llama", recipe.with_name("weights"), seed=1)
    failure = await failure_of(recipe)
    assert failure is not None
    assert "sample 1 (fox), model 'rm': stored " in failure
    assert ", found " in failure
    assert "(the fingerprint was " in failure
    assert "`alarm record`" in failure
    assert await failure_of(recipe, "parity=") is None


async def test_golden_check_compares_within_the_tolerance(recipe: Path) -> None:
    with line_changed(recipe, 2) as line:
        line["scores"]["rm"]["score"] += 5e-5
        line["reward"] += 5e-5
    assert await failure_of(recipe) is None
    with line_changed(recipe, 2) as line:
        line["scores"]["rm"]["score"] += 1e-4
    failure = await failure_of(recipe)
    assert failure is not None
    assert "sample 2, model 'rm': stored " in failure
    assert "(with the stored fingerprint: another machine or library)" in failure
    assert await failure_of(recipe, "parity_tolerance=0.001") is None


def weigh(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace('model = "rm"', 'model = "rm"\nweight = 2.0'))


def add_length(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '[models.length]\nkind = "length"\n')


async def test_golden_check_changed_reward_fails_unless_rewards_are_skipped(
    recipe: Path,
) -> None:
    weigh(recipe)
    failure = await failure_of(recipe)
    assert failure is not None
    assert "sample 1 (fox), reward: stored " in failure
    assert await failure_of(recipe, "holistic.weight=3") is None


async def test_golden_check_other_precision_has_a_larger_tolerance(tmp_path: Path) -> None:
    models = ("preference", "factuality_rm", "relevance_rm")
    halved = [f"models.{name}.dtype=bfloat16" for name in models]
    assert await failure_of("mini", *halved) is None
    shutil.copytree(MINI / "mini", tmp_path / "mini")
    shutil.copy(MINI / "mini.toml", tmp_path)
    with line_changed(tmp_path / "mini" / "parity", 1) as line:
        score = line["scores"]["preference"]["score"]
        line["scores"]["preference"]["score"] = score + 0.1 * max(1.0, abs(score))
    failure = await failure_of(tmp_path / "mini.toml", *halved)
    assert failure is not None
    assert "sample 1 (grounded), model 'preference'" in failure


async def test_golden_check_model_without_stored_scores_fails(recipe: Path) -> None:
    add_length(recipe)
    failure = await failure_of(recipe)
    assert failure is not None
    assert "it has no scores of 'length'" in failure


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("", "has no samples"),
        ("{}\n{}", "line 1: recipe: Field required"),
    ],
)
async def test_golden_check_invalid_file_is_refused(
    recipe: Path, text: str | None, why: str
) -> None:
    file = recipe.with_name("parity.jsonl")
    file.unlink()
    if text is not None:
        file.write_text(text)
    failure = await failure_of(recipe)
    assert failure is not None
    assert why in failure


def test_record_accepts_an_earlier_record(recipe: Path) -> None:
    file = recipe.with_name("parity.jsonl")
    before = file.read_text()
    flags = ("--recipe", str(recipe), "--device", "cpu")
    with line_changed(recipe, 1) as line:
        line["scores"]["rm"]["score"] = 99
    assert main(["record", str(file), "--out", str(file), *flags]) == 0
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (
            {"completion": "a", "token_offsets": [[0, 9]]},
            "sample 2 has no score of 'rm': token_off",
        ),
        ({}, "line 2: completion: Field required"),
    ],
)
def test_record_sample_without_a_score_is_refused(
    recipe: Path, sample: dict[str, Any], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = recipe.with_name("parity.jsonl").read_text()
    assert record(recipe, [SAMPLES[0], {"prompt": "?", **sample}]) == 1
    assert why in capsys.readouterr().err
    assert recipe.with_name("parity.jsonl").read_text() == before


async def test_golden_check_of_mini_passes_and_detects_a_change(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(MINI / "mini", tmp_path / "mini")
    shutil.copy(MINI / "mini.toml", tmp_path)
    assert await failure_of(tmp_path / "mini.toml") is None
    weights = tmp_path / "mini" / "model.safetensors"
    tensors = load_file(weights)
    tensors["relevance_head.bias"][0] += 0.01
    save_file(tensors, weights, metadata={"format": "pt"})
    failure = await failure_of(tmp_path / "mini.toml")
    assert failure is not None
    told = r"sample 1 \(grounded\), model 'relevance_rm': stored (\S+) of segment 1, found (\S+) \("
    found = re.search(told, failure)
    assert found is not None
    stored, current = map(float, found.groups())
    assert stored - current == printed(0.01, digits=4)


def judged(*margins: float) -> Score:
    segments = tuple(SegmentScore(Span(0, 1), None, margin, margin > 0) for margin in margins)
    share = sum(margin > 0 for margin in margins) / len(margins)
    return Score(share, segments, 1, False)


@pytest.mark.parametrize(
    ("stored", "found", "told"),
    [
        (StoredScore(score=1.0), Score(1.00005, None, 1, False), None),
        (StoredScore(score=1.0), Score(1.0002, None, 1, False), "stored 1, found 1.0002"),
        (StoredScore(score=1.0), Score(float("nan"), None, 1, False), "stored 1, found nan"),
        (StoredScore(score=1.0), Score(None, None, 1, False), "stored 1, found none"),
        (StoredScore(score=None), Score(None, None, 1, False), None),
        (StoredScore(score=0.5, segments=[1.0, -1.0]), judged(1.0, -1.0), None),
        (
            StoredScore(score=0.5, segments=[1.0, -1.0]),
            judged(1.0, -1.1),
            "stored -1 of segment 2, found -1.1",
        ),
        (StoredScore(score=1.0, segments=[1.0]), judged(1.0, 1.0), "stored 1 segments, found 2"),
        (
            StoredScore(score=None, outputs={"help": 1.0}),
            Score(None, None, 1, False, outputs={"help": 1.0, "wit": 2.0}),
            "stored none of output 'wit', found 2",
        ),
        (
            StoredScore(score=1.0),
            SampleError("too_long", "600 tokens"),
            "stored 1, found the error 600 tokens",
        ),
    ],
)
def test_golden_check_difference_is_reported(
    stored: StoredScore, found: Score | SampleError, told: str | None
) -> None:
    assert difference(stored, found, 1e-4, is_rough=False) == told


def test_golden_check_other_precision_allows_sign_change_near_zero() -> None:
    stored = StoredScore(score=1.0, segments=[0.001])
    assert difference(stored, judged(-0.001), 1e-4, is_rough=True) is None
    assert difference(stored, judged(-0.1), 1e-4, is_rough=True) is not None


def test_record_errors_are_golden_errors(tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="cannot be read"):
        read_golden_scores(tmp_path / "nowhere")
