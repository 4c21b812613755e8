"""`alarm inspect CHECKPOINT` and `alarm serve --model CHECKPOINT`, without a recipe file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers as hf
from processes import alarm_serving, command_of, environment, until_event
from tolerance import computed
from zoo import builders, cards

from alarm_service.cli.main import main
from alarm_service.settings import Settings, SettingsError, with_models


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "Skywork-Reward"
    builders.write_classifier(
        folder, hf.Qwen3Config, builders.qwen_tokenizer, pad_token_id=0, eos_token_id=2
    )
    return folder


def _inspected(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json", "--device", "cpu"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.numeric
def test_inspect_reports_how_a_checkpoint_is_read_and_its_score(
    classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _inspected(capsys, str(classifier))
    assert told["kind"] == "sequence"
    assert told["read_token"] == r"'\n'"
    assert told["max_tokens"] == 4096
    sent = {
        "prompt": "What is the capital of France?",
        "completion": "The capital of France is Paris.",
    }
    assert told["score"] == computed(cards.chat_classifier(classifier)(sent))


def test_inspect_without_a_score_loads_no_weights(
    classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _inspected(capsys, str(classifier), "--no-score")
    assert "score" not in told
    assert "found score.weight [1, 32], 24 tensors under model." in told["files"]


def test_inspect_writes_a_recipe_that_serves(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "made.toml"
    told = _inspected(capsys, str(classifier), "--no-score", "--out", str(file))
    assert file.read_text("utf-8") == told["recipe"]
    samples = tmp_path / "in.jsonl"
    samples.write_text('{"prompt": "a", "completion": "b"}\n')
    assert main(["score", str(samples), "--recipe", str(file), "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] is not None


def test_inspect_unreadable_checkpoint_lists_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rm-Q4.gguf").write_bytes(b"GGUF")
    assert main(["inspect", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "rm-Q4.gguf" in said
    assert said.count("\n") == 1


@pytest.mark.numeric
def test_served_model_scores_as_its_card_and_reports_read_token(classifier: Path) -> None:
    sent = {"samples": list(cards.ALL.values())}
    keep = ("--set", "models.rm.thinking=keep")  # as the card's snippet does
    with alarm_serving("--model", str(classifier), *keep) as process:
        until_event(process, "ready")
        with httpx.Client(base_url=process.url, timeout=60) as client:
            scores = client.post("/score", json=sent).json()["scores"]
            (model,) = client.get("/models").json()["models"]
    card = cards.chat_classifier(classifier)
    assert [one["score"] for one in scores] == [computed(card(one)) for one in cards.ALL.values()]
    assert model["read_token"] == "\n"
    assert model["notes"] == []


def test_model_flag_replaces_default_recipe_and_adds_to_named_ones() -> None:
    alone = with_models(Settings(model=("a/b",), template="{prompt} {completion}"))
    assert alone.recipe == ("checkpoint:a/b",)
    assert alone.set == ('models.rm.template="{prompt} {completion}"',)
    beside = with_models(Settings(model=("a/b",), recipe=("mini",)))
    assert beside.recipe == ("checkpoint:a/b", "mini")
    assert with_models(Settings()).recipe == ("mini",)


def test_template_flag_without_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="--template applies to --model"):
        with_models(Settings(template="{completion}"))


def test_commands_help_imports_no_torch() -> None:
    program = "import sys; from alarm_service.cli.main import main\n"
    program += "try: main(['inspect', '--help'])\nexcept SystemExit: pass\n"
    program += "assert not {'torch', 'transformers'} & set(sys.modules)"
    command = [command_of()[0], "-c", program]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
