"""Runs trainers' code, each in its own virtual environment, against a server's URL.

Create the environments once, in the folder `ALARM_TRAINERS` (missing ones are skipped):

    python3 -m venv openrlhf && openrlhf/bin/pip install --no-deps openrlhf==0.11.2
    openrlhf/bin/pip install torch==2.13.0 transformers==5.15.0 aiohttp pylatexenc sympy
    python3 -m venv llamafactory && llamafactory/bin/pip install --no-deps llamafactory==0.9.5
    llamafactory/bin/pip install torch==2.13.0 transformers==5.15.0 requests
    python3 -m venv verl && verl/bin/pip install torch==2.13.0 verl==0.9.1
"""

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Process, alarm_serve
from tolerance import computed, logged
from troubled import troubled

from alarm_client.client import AlarmClient
from alarm_client.contrib.relay import Relay
from alarm_client.types import Sample

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
VENVS = Path(os.environ.get("ALARM_TRAINERS", "/nowhere"))
KEY = "sesame"
QUESTION = "question: Who wrote Emma? context: Emma is a novel by Jane Austen, of 1815."
ANSWERS = [
    "Jane Austen wrote it.",
    "Charles Dickens wrote it in Rome.",
    "",
    "Emma is a novel by Jane Austen, it says; 3 < 4 and café.",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with alarm_serve("mini", "--api-key", KEY) as process:
        with AlarmClient(process.url, api_key=KEY) as client:
            client.wait_ready(timeout=120)
        yield process


@pytest.fixture(scope="module")
def expected(server: Process) -> list[float]:
    """Return what our client gets for the same questions and answers."""
    samples = [Sample(prompt=QUESTION, completion=answer) for answer in ANSWERS]
    with AlarmClient(server.url, api_key=KEY) as client:
        return [reward.reward or 0.0 for reward in client.hierarchical_reward(samples).rewards]


def batched(server: Process) -> tuple[float, float]:
    """Return the numbers of samples and batches of the server's models."""
    answer = httpx.get(f"{server.url}/metrics", auth=("anybody", KEY)).raise_for_status()
    lines = answer.text.splitlines()

    def total(name: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    return total("alarm_batch_samples_sum"), total("alarm_batch_samples_count")


def run(trainer: str, *arguments: str) -> Any:
    python = VENVS / trainer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} is not there; the docstring says how to make it")
    script = HERE / f"url_{trainer}.py"
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}"}
    done = subprocess.run(
        [python, script, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def with_key(url: str) -> str:
    return url.replace("http://", f"http://anybody:{KEY}@")


def test_openrlhf_by_url_gets_rewards_and_logs(server: Process, expected: list[float]) -> None:
    rollouts = run("openrlhf", f"{with_key(server.url)}/compat/openrlhf/mini")
    assert [one["reward"][0] for one in rollouts] == logged(expected)
    for one in rollouts:
        logs = one["extra_logs"]
        parts = [logs[name][0] for name in ("holistic", "factuality", "relevance")]
        assert one["reward"][0] == computed(sum(parts))
        assert 0 <= one["scores"][0] <= 1


def test_openrlhf_with_two_urls_uses_both(server: Process, expected: list[float]) -> None:
    url = f"{with_key(server.url)}/get_reward"
    rollouts = run("openrlhf", f"{url},{url}")
    assert [one["reward"][0] for one in rollouts] == logged(expected)


def test_llamafactory_by_url_gets_scores(server: Process, expected: list[float]) -> None:
    scores = run("llamafactory", f"{with_key(server.url)}/compat/llamafactory/mini")
    assert scores == logged(expected)


def test_llamafactory_on_error_stops_training(server: Process) -> None:
    url = f"{with_key(server.url)}/compat/llamafactory/mini?template=gemma"
    assert run("llamafactory", url) == "KeyError: 'scores'"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl_client_gets_rewards(server: Process, expected: list[float], engine: str) -> None:
    address = with_key(server.url).removeprefix("http://")
    rewards = run("verl", f"{address}/compat/{engine}/mini", engine)
    assert rewards == logged(expected)


@pytest.mark.parametrize(
    ("trainer", "path", "more"),
    [("openrlhf", "openrlhf", ()), ("verl", "vllm", ("vllm",))],
    ids=["openrlhf", "verl"],
)
def test_single_sample_requests_share_batches(
    server: Process, trainer: str, path: str, more: tuple[str, ...]
) -> None:
    address = with_key(server.url) if trainer == "openrlhf" else with_key(server.url)[7:]
    before = batched(server)
    found = run(trainer, f"{address}/compat/{path}/mini", *more, "16")
    assert len(found) == 16 * len(ANSWERS)
    num_samples, num_batches = (
        now - then for now, then in zip(batched(server), before, strict=True)
    )
    assert num_samples >= 16 * len(ANSWERS)
    assert num_samples / num_batches > 2


def test_openrlhf_survives_a_full_server_that_is_killed(
    server: Process, expected: list[float]
) -> None:
    with troubled("--api-key", KEY) as ill:
        rollouts = run("openrlhf", f"{with_key(ill.url)}/compat/openrlhf/mini")
        assert 429 not in ill.statuses  # trainers that are known by their path wait in line
        assert ill.num_starts == 2
    assert [one["reward"][0] for one in rollouts] == logged(expected)


def test_llamafactory_waits_for_a_full_server(server: Process, expected: list[float]) -> None:
    with troubled("--api-key", KEY, is_killed=False) as full:
        scores = run("llamafactory", f"{with_key(full.url)}/compat/llamafactory/mini")
        assert full.statuses == [200]
    assert scores == logged(expected)


def test_llamafactory_behind_a_relay_survives_a_killed_server(
    server: Process, expected: list[float]
) -> None:
    with (
        troubled("--api-key", KEY) as ill,
        Relay(ill.url, "127.0.0.1", 0) as relay,
        ThreadPoolExecutor(1) as thread,
    ):
        thread.submit(relay.serve_forever)
        url = f"http://anybody:{KEY}@127.0.0.1:{relay.server_port}"
        scores = run("llamafactory", f"{url}/compat/llamafactory/mini")
        relay.shutdown()
        assert ill.num_starts == 2
    assert scores == logged(expected)
