"""The README's code blocks, run as a reader would run them."""

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


def test_the_curl_gets_the_answer_that_stands_below_it(server: Process) -> None:
    command = block("bash").replace(URL, server.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    got, shown = json.loads(done.stdout), json.loads(block("json"))
    assert got.keys() == shown.keys()
    assert got["fingerprint"] == shown["fingerprint"]
    (reward,), (wanted,) = got["rewards"], shown["rewards"]
    assert reward["reward"] == printed(wanted["reward"])
    assert reward["token_rewards"] == printed(wanted["token_rewards"])
    assert reward["admitted"] == wanted["admitted"]


def test_the_python_runs_and_prints_a_reward_an_answer(server: Process) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names: dict[str, Any] = {}
        exec(block("python").replace(URL, server.url), names)
    names["client"].close()
    assert re.findall(r"past the threshold: (?:True|False)", printed.getvalue()) != []
    assert len(printed.getvalue().splitlines()) == 2


def test_the_recipe_is_a_recipe() -> None:
    recipe = Recipe.model_validate(tomllib.loads(block("toml")) | {"name": "mine"})
    assert recipe.holistic.model == "rm"


def test_every_file_the_readme_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target
