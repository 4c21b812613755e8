import json
import math
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forking import Forked
from processes import PATIENCE_S, recipe_of
from tiny import Checkpoint
from tolerance import computed

from alarm_models.recipe.loader import built_in_names
from alarm_service.cli.main import main
from alarm_service.json_lines import read_lines

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
def test_score_command_writes_one_reward_per_line(recipe_file: Path, llama: Checkpoint) -> None:
    texts = ["The dog.", "The quick brown fox jumps."]
    code, lines = score(recipe_file, "".join(sample(text, id=text) for text in texts))
    assert code == 0
    assert [line["id"] for line in lines] == texts
    for text, line in zip(texts, lines, strict=True):
        plain = llama.plain_logits(f"Human: The fox? Assistant: {text}").item()
        assert line["reward"] == computed(plain)


def test_score_command_invalid_line_has_an_error_in_its_place(
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
    assert lines[2]["error"]["message"] == "line 4: completion: Field required"
    assert "5 of 7 samples failed" in capsys.readouterr().err


def test_score_command_empty_file_has_no_rewards(recipe_file: Path) -> None:
    assert score(recipe_file, "\n\n") == (0, [])


def test_score_command_group_across_chunks_stays_together(tmp_path: Path) -> None:
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


def test_score_command_gdpo_normalizes_over_the_whole_file(tmp_path: Path) -> None:
    recipe = tmp_path / "gdpo.toml"
    recipe.write_text(
        '[models.words]\nkind = "length"\n[holistic]\nmodel = "words"\n[hierarchy]\nrule = "gdpo"\n'
    )
    # The first 300 groups have samples of 0 and 1 words, the others of 1 word and are all equal.
    texts = [("", "a") if group < 300 else ("a", "a") for group in range(600)]
    lines = [sample(one, group=str(group)) for group, pair in enumerate(texts) for one in pair]
    code, rewards = score(recipe, "".join(lines))
    assert code == 0
    # mo_grpo gives `half` and its negative to 300 samples each, and 0 to 600.
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    deviation = math.sqrt(600 * half**2 / 1199) + 1e-4
    values = [one["reward"] for one in rewards]
    assert values[:2] == computed([-half / deviation, half / deviation])
    assert values[-2:] == [0, 0]


def test_score_command_set_changes_the_recipe(recipe_file: Path) -> None:
    _, (plain,) = score(recipe_file, sample("a"))
    _, (tripled,) = score(recipe_file, sample("a"), "--set", "holistic.weight=3")
    assert tripled["reward"] == computed(3 * plain["reward"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "models.nobody.dtype=float32"], "no recipe has a table 'models.nobody'"),
        (
            ["--set", "holistic.wieght=3"],
            "holistic.wieght: Extra inputs are not permitted: did you mean `weight`?",
        ),
        (
            ["--set", "models.rm.templat=x"],
            "models.rm.templat: Extra inputs are not permitted: did you mean `template`?",
        ),
        (["--recipe", "mini", "--recipe", "translation"], "2 recipes are given"),
        (["--set", "overlong.actoin=skip"], "overlong.actoin: Extra inputs are not permitted: did"),
        (["--set", "holistic.weight"], "--set requires KEY=VALUE"),
        (["--recipe", "nobody"], "neither a built-in recipe"),
        (["--device", "tpu"], "--device: 'tpu' is not a device: give auto, cpu"),
        (["--set", "models.rm.checkpoint=/nowhere"], "/nowhere"),
    ],
)
def test_command_line_with_unknown_argument_names_it(
    arguments: list[str], message: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [] if "--recipe" in arguments else ["--recipe", str(recipe_file)]
    file = recipe_file.with_name("in.jsonl")
    file.write_text(sample("a"))
    assert main(["score", str(file), *own, *arguments]) == 1
    complaint = capsys.readouterr().err
    assert complaint.splitlines()[-1].startswith("alarm: ")
    assert message in complaint


def test_command_line_with_missing_file_names_it(
    recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "nowhere.jsonl", "--recipe", str(recipe_file)]) == 1
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_recipes_command_lists_built_in_recipes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in built_in_names())


def test_command_line_help_imports_no_torch() -> None:
    code = "import sys, alarm_service.cli.main; print(sorted({'torch', 'transformers', 'numpy', "
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
def test_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: alarm" in capsys.readouterr().out


def test_command_line_without_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


SAMPLES = sample("The dog.", id="first") + sample("A fox jumps.", id=2)


@pytest.fixture
def by_length(tmp_path: Path) -> Path:
    """A recipe that loads at once."""
    file = tmp_path / "length.toml"
    file.write_text('[models.length]\nkind = "length"\n[holistic]\nmodel = "length"\n')
    return file


@pytest.mark.parametrize("name", ["in.jsonl", "link.jsonl", "hard.jsonl"])
def test_score_command_output_may_be_the_input_file(name: str, by_length: Path) -> None:
    file = by_length.with_name("in.jsonl")
    file.write_text(SAMPLES)
    by_length.with_name("link.jsonl").symlink_to(file)
    os.link(file, by_length.with_name("hard.jsonl"))
    out = by_length.with_name(name)
    assert main(["score", str(file), "--recipe", str(by_length), "--out", str(out)]) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["first", 2]
    assert by_length.with_name("link.jsonl").is_symlink()


def test_score_command_failed_load_keeps_the_output_file(
    by_length: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, out = by_length.with_name("in.jsonl"), by_length.with_name("out.jsonl")
    file.write_text(SAMPLES)
    out.write_text("of yesterday")
    by_length.write_text(
        '[models.m]\nkind = "python"\nfunction = "no:f"\n[holistic]\nmodel = "m"\n'
    )
    assert main(["score", str(file), "--recipe", str(by_length), "--out", str(out)]) == 1
    assert out.read_text() == "of yesterday"
    told = capfd.readouterr().err
    assert (told.count("\n"), told.startswith("alarm: ")) == (1, True)
    assert {one.name for one in by_length.parent.iterdir()} == {
        "in.jsonl", "length.toml", "out.jsonl",
    }  # fmt: skip


def test_score_command_reads_a_pipe_once(by_length: Path) -> None:
    pipe, out = by_length.with_name("pipe"), by_length.with_name("out.jsonl")
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_text, args=(SAMPLES,))
    writing.start()
    assert main(["score", str(pipe), "--recipe", str(by_length), "--out", str(out)]) == 0
    writing.join()
    assert [json.loads(line)["reward"] for line in out.read_text().splitlines()] == [2, 3]


def test_table_to_a_closed_pipe_ends_as_by_sigpipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [Path(sys.executable).with_name("alarm"), "recipes"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_score_command_stops_when_standard_output_closes(by_length: Path) -> None:
    file = by_length.with_name("in.jsonl")
    file.write_text(SAMPLES * 5000)
    with file.open() as read:
        process = Forked("score", "-", "--recipe", str(by_length), read=read)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["id"] == "first"
    process.stdout.close()
    assert "Error" not in process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("line", "id_"),
    [
        ('{"prompt": "?", "completion": null, "id": "row-7"}', "row-7"),
        ('{"id": 7}', 7),
        ('{"id": 7, "prompt": "?", "completion": "a", "more": 1}', 7),
        ('{"id": "\\u00e9", "prompt": ["?"], "completion": "a"}', "é"),
        ('{"id": "a", "prompt": "?", "completion": "a", "token_offsets": [[0, 9]]}', "a"),
        ('{"id": 1.5, "prompt": "?"}', None),
        ('{"id": true}', None),
        ('{"id": ["a"]}', None),
        ('{"id": "\\ud800", "prompt": "?", "completion": "a"}', None),
        ("[1, 2]", None),
        ('"row-7"', None),
        ("7", None),
        ("null", None),
        ("NaN", None),
        ('{"id": "a"', None),
        ("\x00", None),
        ('{"id": "a"\x00}', None),
        ("\ufeff" + '{"prompt": "?", "completion": "a"}', None),
        ("9" * 5000, None),
        ("[" * 100_000, None),
    ],
)
def test_score_command_invalid_line_keeps_its_position_and_id(
    line: str, id_: str | int | None, by_length: Path
) -> None:
    code, lines = score(by_length, f"{sample('a', id='before')}{line}\r\n\n{sample('b', id=3)}")
    assert code == 1
    assert [one["id"] for one in lines] == ["before", id_, 3]
    assert [one["error"] and one["error"]["code"] for one in lines] == [
        None,
        "invalid_sample",
        None,
    ]


def test_score_command_too_long_line_fails_alone(
    by_length: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alarm_service.offline.read_lines", partial(read_lines, max_bytes=200))
    code, lines = score(by_length, sample("a") + sample("b" * 10_000, id="long") + sample("c"))
    assert code == 1
    assert [one["reward"] for one in lines] == [1, None, 1]


def test_score_command_ignores_byte_order_mark_and_carriage_returns(by_length: Path) -> None:
    text = b"\xef\xbb\xbf" + (sample("a") + sample("b c")).replace("\n", "\r\n").encode()
    code, lines = score(by_length, text)
    assert (code, [one["reward"] for one in lines]) == (0, [1, 2])


@pytest.mark.parametrize("flag", ["--out"])
@pytest.mark.parametrize("command", ["score", "record"])
def test_output_that_would_replace_the_recipe_is_refused(
    command: str, flag: str, by_length: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, before = by_length.with_name("in.jsonl"), by_length.read_text()
    file.write_text(SAMPLES)
    assert main([command, str(file), "--recipe", str(by_length), flag, str(by_length)]) == 1
    assert "would be lost" in capsys.readouterr().err
    assert by_length.read_text() == before


def test_record_command_unicode_line_separators_round_trip(by_length: Path) -> None:
    file, record = by_length.with_name("in.jsonl"), by_length.with_name("parity.jsonl")
    file.write_text(json.dumps({"prompt": "?", "completion": "a\u2028b\x85c"}, ensure_ascii=False))
    recipe = ["--recipe", str(by_length)]
    assert main(["record", str(file), *recipe, "--out", str(record)]) == 0
    by_length.write_text(f'parity = "{record.name}"\n{by_length.read_text()}')
    assert main(["score", str(file), *recipe, "--out", str(by_length.with_name("out"))]) == 0
    assert main(["record", str(record), *recipe, "--out", str(record)]) == 0


#: Arguments that each command requires besides its files and recipe.
GROUPS = ["calibrate", "groups.jsonl"]
JUDGE = ["judge", "a=a.jsonl", "b=b.jsonl", "--endpoint", "http://127.0.0.1:9", "--model", "m"]
READERS: list[list[str]] = [
    ["score", "FILE"],
    ["record", "FILE", "--out", "new"],
    ["select", "FILE"],
    ["calibrate", "FILE"],
    ["evaluate", "a=FILE", "b=a.jsonl"],
    ["judge", "a=FILE", *JUDGE[2:], "--yes"],
]
RECIPES: list[tuple[str | bytes, str]] = [
    ("models = 1", "models: Input should be a valid"),
    ("models.m = 3", "models.m: Input should be a valid"),
    ("models.m.template = 'a'", "models.m.kind: Field required"),
    ('models.m.kind = "sequence"\nholistic.model = "m"', "models.m.checkpoint: Field required"),
    ('models.m.kind = "nope"', "models.m.kind: there is no kind 'nope'"),
    ('models.m.kind = "length"\nholistic = 3', "holistic: Input should be a valid"),
    ('models.m.kind = "length"\nholistic.model = "x"', "holistic.model is 'x'"),
    ('models.m.kind = "length"\nmodels.m.foo = 1\nholistic.model = "m"', "models.m.foo"),
    ("aspects = [1]", "aspects: Input should be a valid"),
    ("[[models]]\nx = 1", "models: Input should be a valid"),
    ("a = = 1", "is not valid TOML"),
    (b"\xff\xfe", "is not valid TOML"),
    ("", "models: Field required"),
]
ARGUMENTS: list[tuple[list[str], str]] = [
    (["--set", "x"], "requires KEY=VALUE"),
    (["--set", "=1"], "requires KEY=VALUE"),
    (["--set", "a..b=1"], "requires KEY=VALUE"),
    (["--set", "models.zz.kind=length"], "no recipe has a table"),
    (["--set", "holistic.model.x=1"], "holistic.model is not a table"),
    (["--set", "models.length.kind.x=1"], "models.length.kind is not a table"),
    (["--set", "holistic=3"], "holistic: Input should be a valid"),
    (["--set", "hierarchy.rule=nope"], "hierarchy.rule: Input should be"),
    (["--recipe", "nope"], "neither a built-in recipe"),
    (["--recipe", "."], "neither a built-in recipe"),
    (["--device", "tpu"], "'tpu' is not a device: give auto, cpu"),
    (["--max-batch-tokens", "0"], "--max-batch-tokens: Input should be greater"),
    (["--write", "groups.jsonl"], "groups.jsonl is one of the files to be read"),
    (["--write", "no/such"], "there is no folder"),
    (["--write", "."], "is a folder"),
    (["--out", "groups.jsonl"], "groups.jsonl is a file, but must be a folder"),
    (["--out", "report"], "result.json is one of the files to be read"),
    (["--url", "nope"], "--url must be a URL"),
    (["--url", "http://[::1"], "--url: Invalid IPv6 URL"),
]
JUDGES: list[tuple[list[str], str]] = [
    (["--cache", "a.jsonl"], "a.jsonl is one of the files to be read"),
    (["--cache", "."], "Is a directory"),
    (["--body", "[1]"], "expected a JSON object"),
    (["--body", '{"max_tokens": "x"}'], "max_tokens must be an integer of at least 1"),
    (["--timeout", "nan"], "expected a number above 0"),
    (["--timeout", "-1"], "expected a number above 0"),
    (["--prices", "x", "1"], "expected a number"),
    (["--concurrency", "0"], "expected an integer of at least 1"),
    (["--seed", "-1"], "expected an integer of at least 0"),
    (["--seed", "x"], "expected an integer of at least 0"),
]


@pytest.fixture
def study(by_length: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of every shape, which commands run in."""
    folder = by_length.parent
    monkeypatch.chdir(folder)
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text(sample(f"said by {name}"))
    (folder / "groups.jsonl").write_text('{"prompt": "?", "completions": ["a b", "c"]}\n')
    (folder / "report").mkdir()
    (folder / "report" / "result.json").hardlink_to(folder / "groups.jsonl")
    return folder


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that fails; return the sentence that it prints."""
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = int(str(ended.code))
    assert code in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("alarm")]
    assert len(told) == 1, lines
    assert not any("Traceback" in line for line in lines)
    return told[0]


@pytest.mark.parametrize("command", READERS, ids=lambda one: one[0])
def test_command_with_unreadable_file_prints_one_sentence(
    command: list[str], study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "binary").write_bytes(bytes(range(256)) * 8)
    recipe = [] if command[0] == "judge" else ["--recipe", "length.toml"]
    for file, told in (
        ("nope", "nope: No such file or directory"),
        (".", ".: Is a directory"),
        ("a.jsonl/x", "a.jsonl/x: Not a directory"),
        ("binary", "4 of 4 samples failed" if command[0] == "score" else "is not JSON"),
    ):
        run = [part.replace("FILE", file) for part in command]
        assert told in complaint(capsys, *run, *recipe) or file == "binary"


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--port", "99999", "--port: Input should be less than or equal to 65535 (got 99999)"),
        (
            "--capture-share",
            "2.5",
            "--capture-share: Input should be less than or equal to 1 (got 2.5)",
        ),
        ("--max-samples", "many", "unable to parse string as an integer (got a str of length 4)"),
    ],
)
def test_flag_out_of_range_is_refused_with_its_number(
    flag: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", flag, value]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("text", "told"), RECIPES)
def test_command_with_invalid_recipe_prints_one_sentence(
    text: str | bytes, told: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "bad.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    for command in (["score", "a.jsonl"], GROUPS, ["serve", "--port", "0"]):
        assert told in complaint(capsys, *command, "--recipe", "bad.toml")


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_evaluation_command_with_wrong_argument_prints_one_sentence(
    arguments: list[str], told: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = [] if "--recipe" in arguments else ["--recipe", "length.toml"]
    before = (study / "groups.jsonl").read_text()
    assert told in complaint(capsys, *GROUPS, *recipe, *arguments)
    assert (study / "groups.jsonl").read_text() == before


@pytest.mark.parametrize(("arguments", "told"), JUDGES)
def test_judge_command_with_wrong_argument_prints_one_sentence(
    arguments: list[str], told: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in complaint(capsys, *JUDGE, "--yes", *arguments)
    assert (study / "a.jsonl").read_text() == sample("said by a")


@pytest.mark.parametrize("host", ["no such host", "a\nb", "nowhere.invalid", "\udcff"])
def test_health_command_with_invalid_host_prints_one_sentence(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["health", "--host", host, "--port", "1"]) == 1
    assert capsys.readouterr().out.count("\n") == 1


def test_score_command_on_a_closed_stream_says_so(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ("--recipe", "length.toml")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", None)
        assert "standard input is closed" in complaint(capsys, "score", "-", *own)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", None)
        assert "standard output is closed" in complaint(capsys, "score", "a.jsonl", *own)
        assert main(["score", "a.jsonl", *own, "--out", "new"]) == 0


def test_score_command_on_a_full_device_says_so(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = complaint(capsys, "score", "a.jsonl", "--recipe", "length.toml", "--out", "/dev/full")
    assert told == "alarm: No space left on device"
