"""`try`: scores samples from the command line as a trainer module would send them."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from processes import alarm_serve
from reward_server import RewardServer

from alarm_client.__main__ import main
from alarm_client.client import AlarmClient
from alarm_client.trainers.__main__ import WHAT_TO_WRITE
from alarm_client.trainers.__main__ import main as of_trainers
from alarm_client.trainers._try import defaults_of

ASK = ["try", "--prompt", "Capital of France?", "--completion", "Paris"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    recipe = tmp_path_factory.mktemp("recipe") / "exact.toml"
    recipe.write_text(
        '[models.m]\nkind = "exact-match"\n[models.words]\nkind = "length"\n'
        '[holistic]\nmodel = "m"\n[aspects.words]\nmodel = "words"\nshaping = "none"\n'
        '[hierarchy]\nrule = "holistic_only"\n'
    )
    with alarm_serve(recipe) as process, AlarmClient(process.url) as client:
        client.wait_ready(60)
        yield process.url


@pytest.fixture
def there(url: str, sources: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALARM_URL", url)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_try_prints_reward_and_components(there, capsys) -> None:
    assert main([*ASK, "--field", "reference=Paris"]) == 0
    assert lines(capsys) == [
        "request   this client: the server's default recipe",
        "field     reference = 'Paris'",
        "answer    'Paris'",
        "reward    1",
        "holistic  1 (raw 1)",
        "admitted  yes",
        "aspect    words 1",
    ]


def test_try_without_reference_names_the_missing_field(there, capsys) -> None:
    assert main(ASK) == 1
    found = "\n".join(lines(capsys))
    assert "ALARM_FIELDS=reference=COLUMN" in found
    assert "missing   fields.reference: here by --field reference=TEXT" in found


def test_try_row_is_read_by_the_trainers_columns(there, capsys) -> None:
    row = json.dumps({"ground_truth": "Paris"})
    assert of_trainers(["try", "verl", *ASK[1:], "--row", row]) == 0
    assert "reward    1" in lines(capsys)


@pytest.mark.parametrize(
    ("trainer", "row"),
    [
        ("verl", {"reward_model": {"ground_truth": "Paris"}}),
        ("skyrl", {"reward_spec": {"ground_truth": "Paris"}}),
        ("verifiers", {"info": {"answer": "Paris"}}),
        ("slime", {"metadata": {"label": "Paris"}}),
        ("miles", {"label": "Paris", "metadata": None}),
        ("easyr1", {"prompt": "Capital of France?", "reference": "Paris"}),
        ("easyr1", {"answer": {"prompt": "Capital of France?", "reference": "Paris"}}),
        ("easyr1", {"ground_truth": '{"prompt": "Q", "reference": "Paris"}', "level": 3}),
        ("easyr1", {"my_key": '{"prompt": "Q", "answer": "Paris"}'}),
    ],
)
def test_try_row_is_read_as_in_training(there, capsys, trainer, row) -> None:
    assert of_trainers(["try", trainer, *ASK[1:], "--row", json.dumps(row)]) == 0
    assert "reward    1" in lines(capsys)


def test_try_easyr1_sends_every_text_of_the_answer_column_as_a_field(there, capsys) -> None:
    answer = {"prompt": "Capital of France?", "reference": "Paris", "year": 1815, "none": None}
    row = ["--row", json.dumps({"answer": json.dumps(answer), "level": "easy"})]
    assert of_trainers(["try", "easyr1", *ASK[1:], *row]) == 0
    found = lines(capsys)
    fields = [line for line in found if line.startswith("field")]
    assert fields == ["field     reference = 'Paris'", "field     year = '1815'"]
    assert "reward    1" in found


def test_try_verl_field_from_extra_info_is_sent(there, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ALARM_FIELDS", "reference=gold")
    row = ["--row", '{"extra_info": {"gold": "Paris"}}']
    assert of_trainers(["try", "verl", *ASK[1:], *row]) == 0
    assert "reward    1" in lines(capsys)


def test_try_with_invalid_messages_exits_2(there, capsys) -> None:
    prompt = ["--prompt", '[{"role": "user", "content": 3}]', "--completion", "A"]
    for run in (lambda: main(["try", *prompt]), lambda: of_trainers(["try", "trl", *prompt])):
        assert run() == 2
        assert "a message's content must be a string" in capsys.readouterr().err


def test_try_reads_the_fields_setting(there, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ALARM_FIELDS", "reference=gold")
    row = ["--row", '{"gold": "Rome"}']
    assert of_trainers(["try", "trl", *ASK[1:], *row]) == 0
    assert "reward    0" in lines(capsys)
    assert of_trainers(["try", "trl", *ASK[1:], "--row", '{"other": "Rome"}']) == 2
    assert "'gold'" in capsys.readouterr().err


def test_try_with_several_completions_sends_one_group(there, capsys) -> None:
    group = ["--completion", "Rome", "--overrides", '{"rule": "gdpo", "weights": {"words": 0}}']
    assert of_trainers(["try", "trl", *ASK[1:], *group, "--field", "reference=Paris"]) == 0
    found = [line for line in lines(capsys) if line.startswith("reward")]
    assert [float(line.split()[1]) for line in found] == pytest.approx([0.7071, -0.7071], abs=1e-3)


def test_try_group_rule_with_single_sample_trainer_exits_1(there, capsys) -> None:
    rule = ["--overrides", '{"rule": "gdpo"}', "--field", "reference=Paris"]
    assert of_trainers(["try", "openrlhf", *ASK[1:], *rule]) == 1
    assert "openrlhf sends one sample at a time" in "\n".join(lines(capsys))


def test_try_with_one_failed_sample_prints_the_others(rewards: RewardServer, capsys) -> None:
    rewards.bad = {"x"}
    assert main([*ASK, "--completion", "x"]) == 1
    found = lines(capsys)
    assert "reward    5" in found
    assert "failed    too_long: over the limit" in found


def test_try_with_wrong_arguments_exits_2(rewards: RewardServer, capsys) -> None:
    assert main([*ASK, "--field", "Paris"]) == 2
    assert main([*ASK, "--row", "[1]"]) == 2
    assert main([*ASK, "--overrides", "x"]) == 2
    assert rewards.bodies == []
    with pytest.raises(SystemExit, match="2"):
        of_trainers(["try", "no-such-trainer", *ASK[1:]])
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_try_without_server_names_its_url(sources, capsys, monkeypatch) -> None:
    monkeypatch.setenv("ALARM_CONNECT_TIMEOUT", "0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert main([*ASK, "--url", url]) == 1
    assert url in "\n".join(lines(capsys))


def test_ready_without_api_key_fails(sources, capsys, monkeypatch, tmp_path) -> None:
    recipe = tmp_path / "words.toml"
    recipe.write_text(
        '[models.words]\nkind = "length"\n[holistic]\nmodel = "words"\n'
        '[hierarchy]\nrule = "holistic_only"\n'
    )
    with alarm_serve(recipe, "--api-key", "k3y") as process:
        monkeypatch.setenv("ALARM_URL", process.url)
        monkeypatch.setenv("ALARM_API_KEY", "another")
        assert of_trainers(["ready", "--timeout", "60"]) == 1
        assert "answered 401: send the server's key" in capsys.readouterr().err
        monkeypatch.setenv("ALARM_API_KEY", "k3y")
        assert of_trainers(["ready", "--timeout", "60"]) == 0
        assert "is ready" in capsys.readouterr().out


def test_both_try_commands_run_as_modules(url: str) -> None:
    field = ["--field", "reference=Paris", "--url", url]
    for module in (["alarm_client", *ASK], ["alarm_client.trainers", "try", "trl", *ASK[1:]]):
        done = subprocess.run(
            [sys.executable, "-m", *module, *field], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "reward    1\n" in done.stdout


def test_try_works_for_every_trainer() -> None:
    assert {defaults_of(trainer).trainer for trainer in WHAT_TO_WRITE} == set(WHAT_TO_WRITE)


@pytest.mark.parametrize("wrong", ["-1", "0", "nan", "inf", "soon"])
def test_ready_with_invalid_timeout_is_refused_by_name(wrong: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        of_trainers(["ready", f"--timeout={wrong}"])
    assert ended.value.code == 2
    assert f"argument --timeout: must be seconds above 0, got {wrong!r}" in capsys.readouterr().err
