import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import recipe_of
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe_files import built_in_names
from alarm_service.cli import main

Lines = list[dict[str, Any]]


@pytest.fixture
def recipe_file(llama: Checkpoint, tmp_path: Path) -> Path:
    """A recipe of the tiny checkpoint alone."""
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    return file


def score(recipe: Path, text: str | bytes, *flags: str) -> tuple[int, Lines]:
    file, out = recipe.with_name("in.jsonl"), recipe.with_name("out.jsonl")
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    arguments = ["score", str(file), "--recipe", str(recipe), "--out", str(out), *flags]
    code = main([*arguments, "--device", "cpu"])
    return code, [json.loads(line) for line in out.read_text().splitlines()]


def sample(completion: str, **more: Any) -> str:
    return json.dumps({"prompt": "The fox?", "completion": completion, **more}) + "\n"


@pytest.mark.numeric
def test_a_file_of_samples_becomes_lines_of_rewards(recipe_file: Path, llama: Checkpoint) -> None:
    texts = ["The dog.", "The quick brown fox jumps."]
    code, lines = score(recipe_file, "".join(sample(text, id=text) for text in texts))
    assert code == 0
    assert [line["id"] for line in lines] == texts
    for text, line in zip(texts, lines, strict=True):
        plain = llama.plain_logits(f"Human: The fox? Assistant: {text}").item()
        assert line["reward"] == computed(plain)


def test_a_line_that_is_no_sample_has_an_error_in_its_place(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [
        b"{",
        b'{"prompt": "?"}',
        b'{"prompt": "\xff", "completion": "a"}',
        b"[" * 100_000,
        sample("a", token_offsets=[[0, 9]]).strip().encode(),
    ]
    text = b"\n".join([sample("a").encode(), *broken, b"", sample("b").encode()])
    code, lines = score(recipe_file, text)
    assert code == 1
    codes = [line["error"] and line["error"]["code"] for line in lines]
    assert codes == [None, *["invalid_sample"] * 5, None]
    assert lines[2]["error"]["message"] == "completion: Field required"
    assert "5 of 7 samples failed" in capsys.readouterr().err


def test_a_file_of_no_samples_has_no_rewards(recipe_file: Path) -> None:
    assert score(recipe_file, "\n\n") == (0, [])


def test_a_group_that_many_lines_lead_up_to_is_compared_whole(tmp_path: Path) -> None:
    recipe = tmp_path / "groups.toml"
    recipe.write_text(
        '[models.length]\nkind = "length"\n[holistic]\nmodel = "length"\n'
        '[hierarchy]\nrule = "mo_grpo"\ngroup_size = 4\n'
    )
    last = "".join(sample(text, group="last") for text in ("a", "bb", "ccc", "dddddd"))
    _, alone = score(recipe, last)
    before = "".join(sample("a" * (1 + i % 4), group=f"g{i // 4}") for i in range(252))
    one = sample("x") * 2  # without a group: refused, but lines all the same
    code, lines = score(recipe, before + one + last)
    assert code == 1
    assert [line["reward"] for line in lines[-4:]] == [line["reward"] for line in alone]
    assert None not in [line["reward"] for line in lines[-4:]]


def test_a_setting_changes_the_recipe(recipe_file: Path) -> None:
    _, (plain,) = score(recipe_file, sample("a"))
    _, (tripled,) = score(recipe_file, sample("a"), "--set", "holistic.weight=3")
    assert tripled["reward"] == computed(3 * plain["reward"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "models.nobody.dtype=float32"], "no recipe has a table 'models.nobody'"),
        (["--set", "holistic.wieght=3"], "holistic.wieght: Extra inputs are not permitted"),
        (["--set", "holistic.weight"], "--set wants KEY=VALUE"),
        (["--recipe", "nobody"], "neither a built-in recipe"),
        (["--device", "tpu"], "device: String should match"),
        (["--set", "models.rm.checkpoint=/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_told(
    arguments: list[str], message: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if "--recipe" in arguments else ["--recipe", str(recipe_file)]
    file = recipe_file.with_name("in.jsonl")
    file.write_text(sample("a"))
    assert main(["score", str(file), *own, *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.splitlines()[-1].startswith("alarm: ")
    assert message in complaint


def test_a_file_that_is_not_there_is_told(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "nowhere.jsonl", "--recipe", str(recipe_file)]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_recipes_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in built_in_names())


def test_the_command_line_starts_without_what_is_slow_to_import() -> None:
    code = "import sys, alarm_service.cli; print(sorted({'torch', 'transformers', 'numpy', "
    code += "'matplotlib', 'httpx', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["score"],
        ["recipes"],
        ["select"],
        ["calibrate"],
        ["evaluate"],
        ["judge"],
    ],
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: alarm" in capsys.readouterr().out


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err
