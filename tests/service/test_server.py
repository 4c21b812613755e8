import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest
from processes import (
    PATIENCE_S,
    alarm,
    alarm_from_scratch,
    alarm_serve,
    alarm_serving,
    connect,
    recipe_of,
    until_event,
)
from tiny import Checkpoint

#: Work for seconds, so that a signal comes while it runs.
MANY = {
    "samples": [
        {"prompt": f"{index} The fox? " * 30, "completion": "The dog. " * 40}
        for index in range(512)
    ]
}


@pytest.fixture
def recipe(llama: Checkpoint, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(recipe_of(llama.folder))
    return file


def test_sigterm_finishes_running_requests(recipe: Path) -> None:
    answers: list[httpx.Response] = []
    with alarm_serve(recipe, "--max-batch-tokens", "600") as process:
        until_event(process, "ready")

        def ask() -> None:
            answers.append(httpx.post(f"{process.url}/score", json=MANY, timeout=PATIENCE_S))

        asking = threading.Thread(target=ask)
        asking.start()
        while _queued_tokens(process.url) == 0:
            pass
        code, log = process.stop(signal.SIGTERM)
        asking.join(PATIENCE_S)
    assert code == 0
    assert log.index('"draining"') < log.index('"/score"')
    (answer,) = answers
    assert answer.status_code == 200
    assert [score["error"] for score in answer.json()["scores"]] == [None] * 512


def test_requests_before_models_are_loaded_are_served(recipe: Path) -> None:
    with alarm_serving("--recipe", str(recipe), start=alarm_from_scratch) as process:
        answer = httpx.post(
            f"{process.url}/hierarchical_reward",
            json={"samples": [{"prompt": "The fox?", "completion": "The dog."}]},
            timeout=PATIENCE_S,
        )
        assert answer.status_code == 200
        assert answer.json()["recipe"] == "tiny"
        assert answer.json()["rewards"][0]["error"] is None
        assert httpx.get(f"{process.url}/health/ready", timeout=PATIENCE_S).status_code == 200
        assert process.stop(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_models_are_loaded_exits_with_0(recipe: Path, sig: signal.Signals) -> None:
    with alarm_serving("--recipe", str(recipe), start=alarm_from_scratch) as process:
        assert process.stop(sig)[0] == 0


def test_serve_with_missing_checkpoint_exits_with_1(recipe: Path) -> None:
    with alarm_serve(recipe, "--set", "models.rm.checkpoint=/nowhere") as process:
        code, errors = process.ended()
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("alarm: models.rm: checkpoint '/nowhere' is not a folder")


def test_serve_on_a_taken_port_says_so_with_a_remedy(recipe: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = alarm("serve", "--recipe", str(recipe), "--port", port)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert errors.startswith(f"alarm: cannot listen on 127.0.0.1 port {port}: ")
    assert errors.endswith("; choose another with --port\n")


def test_serve_with_an_unknown_recipe_key_names_it(recipe: Path) -> None:
    process = alarm("serve", "--recipe", str(recipe), "--set", "holistic.wieght=2")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert errors == (
        "alarm: recipe 'tiny': holistic.wieght: Extra inputs are not permitted: did you mean "
        "`weight`?\n"
    )


def test_idle_connection_does_not_delay_shutdown(recipe: Path) -> None:
    with alarm_serve(recipe) as process, connect(process) as idle:
        until_event(process, "ready")
        idle.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        assert process.stop(signal.SIGTERM)[0] == 0


def _queued_tokens(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    (line,) = (line for line in lines if line.startswith("alarm_queued_tokens "))
    return float(line.split()[1])
