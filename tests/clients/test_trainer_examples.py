"""The shell examples, run with stand-ins for the trainers' commands."""

import ast
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from alarm_client.trainers import _settings as settings

EXAMPLES = Path(__file__).parents[2] / "clients" / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
CLOSED = "http://127.0.0.1:9"  # no server listens on discard's port
OURS = {f"ALARM_{name.upper()}" for name in settings.NAMES}

# `python -m alarm_client.trainers path|ready` is the real one, for a moment; all else is noted.
STAND_IN = f"""#!{sys.executable}
import json, os, sys
given = sys.argv[1:]
if given[:2] == ["-m", "alarm_client.trainers"]:
    if given[2] == "ready":
        if os.environ.get("SKIP_READY"):
            sys.exit(0)
        given = given[:given.index("--timeout")] + ["--timeout", os.environ["SECONDS"]]
    os.execv(sys.executable, [sys.executable, *given])
settings = {{name: value for name, value in os.environ.items() if name.startswith("ALARM_")}}
with open(os.environ["NOTES"], "w") as file:
    json.dump([given, settings], file)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    for command in ("python", "swift", "trl"):
        stand_in = tmp_path / command
        stand_in.write_text(STAND_IN)
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    for name in OURS:
        monkeypatch.delenv(name, raising=False)

    def run(script, **environment):
        notes = tmp_path / "notes.json"
        given = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "PYTHONPATH": str(EXAMPLES.parent),
            "SECONDS": "60",
        }
        done = subprocess.run(
            ["/bin/sh", str(script), "--of-the-user", "a b"],
            env=os.environ | given | environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        return done, json.loads(notes.read_text()) if notes.exists() else None

    return run


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_keeps_variables_of_the_user(script, run, rewards):
    own = {"ALARM_URL": rewards.url, "ALARM_RECIPE": "own", "ALARM_ASPECT_NAMES": "depth"}
    done, (given, seen) = run(script, **own)
    assert done.returncode == 0, done.stderr
    assert seen == own
    assert given[-2:] == ["--of-the-user", "a b"]
    assert "is ready" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_without_variables_sets_only_the_url(script, run):
    done, (_, seen) = run(script, SKIP_READY="1")
    assert done.returncode == 0, done.stderr
    assert seen == {"ALARM_URL": "http://rewards:8000"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_without_server_exits_before_training(script, run):
    done, noted = run(script, ALARM_URL=CLOSED, SECONDS="0.2")
    assert (done.returncode, noted) == (1, None)
    assert CLOSED in done.stderr


def test_examples_contain_no_other_server():
    """An argument in one would win over the user's ALARM_URL."""
    for path in EXAMPLES.iterdir():
        lines = [one for one in path.read_text().splitlines() if "http://rewards" in one]
        expected = [': "${ALARM_URL:=http://rewards:8000}"'] if path.suffix == ".sh" else []
        assert lines == expected, path.name


def report_of_train_grpo():
    """Its function alone: the script imports TRL."""
    tree = ast.parse((EXAMPLES / "train_grpo.py").read_text())
    (function,) = (node for node in tree.body if getattr(node, "name", None) == "report")
    names = {}
    exec(compile(ast.Module([function], []), "train_grpo.py", "exec"), names)
    return names["report"]


@pytest.mark.parametrize(
    ("num_steps", "title", "means"),
    [
        (1, "mean of 1 step", "0.000"),
        (3, "mean of 1 step, first -> last", "0.000 ->    2.000"),
        (4, "mean of 2 steps, first -> last", "0.500 ->    2.500"),
        (60, "mean of 10 steps, first -> last", "4.500 ->   54.500"),
    ],
)
def test_train_grpo_report_of_first_and_last_steps_is_disjoint(num_steps, title, means):
    log = [{"reward": float(step)} for step in range(num_steps)]
    lines = report_of_train_grpo()(log).splitlines()
    assert lines[0] == title
    assert lines[1].split(maxsplit=1) == ["reward", means]
