"""Runs each benchmark with small sizes; every variant gives the numbers of transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--layers", "2", "--hidden", "128", "--rounds", "1"]
GROUP = ["group.py", *SMALL, "--prompt", "60", "--completion", "40", "--groups", "4"]
HTTP = {"alarm, one request", "alarm, a request a sample"}
PADDING = {"padding server, one request", "padding server, a request a sample"}
PLAIN = {"transformers, one by one"}
BOUND = {"matrix products alone"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "ways"),
    [
        (GROUP, HTTP | PADDING | PLAIN | BOUND | {"alarm, in-process"}),
        ([*GROUP, "--head", "segments"], HTTP | PADDING | PLAIN | {"alarm, in-process"}),
        (["ragged.py", *SMALL, "--samples", "32"], HTTP | PLAIN | BOUND | {"alarm, in-process"}),
        (["longformer.py", *SMALL, "--samples", "8"], HTTP | PLAIN | BOUND | {"alarm, in-process"}),
        (["overhead.py", *SMALL, "--samples", "64"], HTTP | {"alarm, in-process"}),
        (
            ["recipe.py", "--holistic", "2", "128", "--aspects", "2", "128", "--rounds", "2"],
            {"alarm, a request a group", "alarm, a request a sample", "as the original does"}
            | BOUND,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_variant_of_a_benchmark_gives_the_same_numbers(
    command: list[str], ways: set[str]
) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / command[0], *command[1:]],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert reports
    for found in reports:
        assert ways <= found["ways"].keys()
        differences = [way["difference"] for way in found["ways"].values()]
        assert max(one for one in differences if one is not None) <= 1e-5


@pytest.mark.slow
def test_a_revision_compared_with_itself_gives_the_same_scores() -> None:
    alarm = str(Path(sys.executable).with_name("alarm"))
    sizes = ["--layers", "2", "--hidden", "128", "--requests", "4"]
    done = subprocess.run(
        [sys.executable, FOLDER / "revisions.py", "--before", alarm, "--after", alarm, *sizes],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [found["benchmark"] for found in reports] == ["group", "overhead", "one-sample"]
    assert max(found["difference"] for found in reports) <= 1e-5


@pytest.mark.slow
def test_scale_fits_an_exponent_to_each_cost() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "scale.py", "--quick"],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 13
    assert max(found["exponent"] for found in reports) < 1.6  # 2 is quadratic
