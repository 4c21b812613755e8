"""Runs the code blocks of the README."""

import contextlib
import io
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Process, alarm_serve
from tolerance import printed

from alarm_models.recipe.schema import Recipe

README = (Path(__file__).parents[1] / "README.md").read_text()
URL = "http://127.0.0.1:8000"


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, f"the README has {len(found)} blocks of {language}"
    return str(found[0])


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with alarm_serve("mini") as process:
        yield process


def test_readme_curl_returns_the_response_shown(server: Process) -> None:
    command = block("bash").replace(URL, server.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    got, shown = json.loads(done.stdout), json.loads(block("json"))
    assert got.keys() == shown.keys()
    assert got["fingerprint"] == shown["fingerprint"]
    for reward, wanted in zip(got["rewards"], shown["rewards"], strict=True):
        assert reward["reward"] == printed(wanted["reward"])
        assert reward["token_rewards"] == printed(wanted["token_rewards"])
        assert reward["admitted"] == wanted["admitted"]
        labels, wanted_labels = (
            [segment["label"] for segment in one["aspects"]["factuality"]["segments"]]
            for one in (reward, wanted)
        )
        assert labels == wanted_labels


def test_readme_python_prints_one_reward_per_answer(server: Process) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        names: dict[str, Any] = {}
        exec(block("python").replace(URL, server.url), names)
    names["client"].close()
    shown = re.search(r"It prints (\S+) for the first answer, .* and (\S+) for the second", README)
    assert shown is not None
    lines = [line.split(maxsplit=1) for line in output.getvalue().splitlines()]
    assert [float(value) for value, _ in lines] == printed(
        [float(one) for one in shown.groups()], digits=1
    )
    assert [rest.split()[3] for _, rest in lines] == ["True", "False"]


def test_readme_recipe_is_valid() -> None:
    recipe = Recipe.model_validate(tomllib.loads(block("toml")) | {"name": "mine"})
    assert recipe.holistic.model == "rm"


def test_readme_link_targets_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        name, _, heading = target.partition("#")
        page = Path(__file__).parents[1] / name
        assert page.is_file(), target
        headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), flags=re.M)
        anchors = {one.lower().replace(" ", "-") for one in headings}
        assert not heading or heading in anchors, target
