"""A real server whose weights and recipe change on disk while callers never pause."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import tiny
from processes import PATIENCE_S, Process, alarm_serve, recipe_of, until_event
from tiny import Checkpoint
from tolerance import computed

from alarm_service.cli.main import main

COMPLETIONS = [f"The {word}." for word in " ".join(tiny.TEXT).split()]
NUM_CALLERS = 4
ADMIN = {"Authorization": "Bearer open"}


@dataclass
class ServedFiles:
    """The files that a server was started with, and how they are changed."""

    folder: Path
    editions: Mapping[str, Path]

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.toml"

    def publish(self, edition: str) -> None:
        """Put an edition's weights where the recipe names them, as a copy that is renamed."""
        new = self.folder / "new"
        shutil.copy(self.editions[edition] / "model.safetensors", new)
        new.replace(self.folder / "weights" / "model.safetensors")

    def spoil_weights(self) -> None:
        (self.folder / "weights" / "model.safetensors").write_bytes(b"no weights")

    @contextmanager
    def spoilt_recipe(self) -> Iterator[None]:
        text = self.recipe.read_text()
        self.recipe.write_text(text.replace("[holistic]", "[holistic"))
        yield
        self.recipe.write_text(text)


@dataclass
class Heard:
    """The callers' results: failures, and the number of right responses of each edition."""

    truth: Mapping[str, Mapping[str, float]]
    right: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    editions: dict[str, str] = field(default_factory=dict)
    is_over: bool = False

    def ask(self, url: str, caller: int) -> None:
        """Send one request after another until stopped; every other one for a reward."""
        number = caller
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            while not self.is_over:
                number += NUM_CALLERS
                asked = [COMPLETIONS[(number + step) % len(COMPLETIONS)] for step in range(3)]
                self._judge(client, number % 8 < 4, asked)

    def _judge(self, client: httpx.Client, is_score: bool, asked: list[str]) -> None:
        samples = [{"prompt": "The fox?", "completion": text} for text in asked]
        route, found, number = (
            ("/score", "scores", "score")
            if is_score
            else ("/hierarchical_reward", "rewards", "reward")
        )
        answer = client.post(route, json={"samples": samples})
        if answer.status_code != 200:
            self.wrong.append(answer.text)
            return
        got = [one[number] for one in answer.json()[found]]
        editions = [
            edition
            for edition, truth in self.truth.items()
            if got == computed([truth[text] for text in asked])
        ]
        print_of = f"{route} {answer.json()['fingerprint']}"
        if len(editions) != 1 or self.editions.setdefault(print_of, editions[0]) != editions[0]:
            self.wrong.append(f"{got} with {print_of}: {editions}, {self.editions}")
            return
        self.right[editions[0]] = self.right.get(editions[0], 0) + 1


@pytest.fixture(scope="module")
def editions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("editions")
    return {
        name: tiny.sequence_classifier("llama", folder / name, seed=seed)
        for seed, name in enumerate(("first", "second"))
    }


@pytest.fixture
def files(editions: dict[str, Checkpoint], tmp_path: Path) -> ServedFiles:
    shutil.copytree(editions["first"].folder, tmp_path / "weights")
    (tmp_path / "tiny.toml").write_text(recipe_of(tmp_path / "weights"))
    return ServedFiles(tmp_path, {name: one.folder for name, one in editions.items()})


def truths(editions: dict[str, Checkpoint]) -> dict[str, dict[str, float]]:
    """The scores of transformers itself."""
    return {
        name: {
            text: one.plain_logits(f"Human: The fox? Assistant: {text}").item()
            for text in COMPLETIONS
        }
        for name, one in editions.items()
    }


def num_changes(process: Process, outcome: str) -> int:
    metrics = httpx.get(f"{process.url}/metrics", timeout=PATIENCE_S).text
    found = re.search(rf'changes_total{{change="reload",outcome="{outcome}"}} (\d+)', metrics)
    return int(found[1]) if found else 0


def reload(process: Process, outcome: str, *, by_signal: bool) -> None:
    """Reload everything, and check the result."""
    before = num_changes(process, outcome)
    if by_signal:
        os.kill(process.popen.pid, signal.SIGHUP)
        while num_changes(process, outcome) == before:
            assert process.popen.poll() is None
            time.sleep(0.01)
        return
    answer = httpx.post(f"{process.url}/admin/reload", json={}, headers=ADMIN, timeout=PATIENCE_S)
    assert answer.status_code == (409 if outcome == "refused" else 200), answer.text
    assert num_changes(process, outcome) == before + 1


@contextmanager
def calling(url: str, heard: Heard) -> Iterator[None]:
    callers = [
        threading.Thread(target=heard.ask, args=(url, number)) for number in range(NUM_CALLERS)
    ]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        heard.is_over = True
        for caller in callers:
            caller.join(PATIENCE_S)


def test_reload_under_load_fails_no_request(
    files: ServedFiles, editions: dict[str, Checkpoint]
) -> None:
    heard = Heard(truths(editions))
    with serving(files.recipe) as process, calling(process.url, heard):
        for by_signal in (False, True):
            files.publish("second")
            reload(process, "changed", by_signal=by_signal)
            reload(process, "unchanged", by_signal=by_signal)
            files.spoil_weights()
            reload(process, "refused", by_signal=by_signal)
            files.publish("first")
            with files.spoilt_recipe():
                reload(process, "refused", by_signal=by_signal)
            assert httpx.get(f"{process.url}/health/ready").status_code == 200
            reload(process, "changed", by_signal=by_signal)
    assert heard.wrong == []
    assert set(heard.right) == {"first", "second"}
    assert min(heard.right.values()) > NUM_CALLERS
    assert len(heard.editions) == 4  # two fingerprints of the model, two of the recipe


@contextmanager
def serving(recipe: Path) -> Iterator[Process]:
    """Serve with an admin key; the log is read continuously, so that it never blocks."""
    with alarm_serve(recipe, "--admin-key", "open") as process:
        until_event(process, "ready")
        reader = threading.Thread(target=process.popen.stderr.read)  # type: ignore[union-attr]
        reader.start()
        try:
            yield process
        finally:
            process.popen.kill()
            reader.join(PATIENCE_S)


def test_server_with_altered_weights_and_golden_scores_exits(files: ServedFiles) -> None:
    lines = files.folder / "samples.jsonl"
    lines.write_text('{"prompt": "The fox?", "completion": "The dog.", "id": "fox"}\n')
    out = str(files.folder / "parity.jsonl")
    recipe = ("--recipe", str(files.recipe), "--device", "cpu")
    assert main(["record", str(lines), "--out", out, *recipe]) == 0
    files.recipe.write_text('parity = "parity.jsonl"\n' + files.recipe.read_text())
    with alarm_serve(files.recipe) as process:
        until_event(process, "ready")
        files.spoil_weights()
        process.popen.send_signal(signal.SIGHUP)
        refused = until_event(process, "recipes not changed")["error"]
        assert "is not a valid safetensors file" in refused
        files.publish("second")
        process.popen.send_signal(signal.SIGHUP)
        refused = until_event(process, "recipes not changed")["error"]
        assert "sample 1 (fox), model 'rm': stored" in refused
        assert httpx.get(f"{process.url}/health/ready").status_code == 200
        assert process.stop(signal.SIGTERM)[0] == 0
    with alarm_serve(files.recipe) as process:
        code, errors = process.ended()
    assert code == 1
    assert "sample 1 (fox), model 'rm': stored" in errors.splitlines()[-1]
