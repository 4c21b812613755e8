"""Worker processes that die or are killed fail only their own samples and are replaced."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE_S, Process, alarm_serve

from alarm_client.client import AlarmClient
from alarm_client.types import Sample, Score

pytestmark = pytest.mark.slow

FUNCTIONS = """
import os, signal, time

def words(sample):
    text = sample.completion
    if "raise" in text:
        raise ValueError("no")
    if "nan" in text:
        return float("nan")
    if "memory" in text:
        return len(bytearray(1 << 62))
    if "killed" in text:  # as the kernel does where memory ends
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in text:
        time.sleep(1000)
    return len(text.split())
"""

RECIPE = """
[models.words]
kind = "python"
function = "my_words:words"
path = "{folder}"
timeout_s = 1.5
workers = 2
[holistic]
model = "words"
[hierarchy]
rule = "holistic_only"
"""

#: What a word does to its sample: the error's code, and a part of its message.
ERRORS = {
    "raise": ("model_failed", "ValueError('no')"),
    "nan": ("non_finite", ""),
    "memory": ("model_failed", "MemoryError"),
    "killed": ("model_failed", "ended its process"),
    "hang": ("model_failed", "took longer than 1.5 s"),
}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Serve one function in two worker processes."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "my_words.py").write_text(FUNCTIONS)
    (folder / "words.toml").write_text(RECIPE.format(folder=folder))
    with alarm_serve(folder / "words.toml") as process:
        with AlarmClient(process.url) as client:
            client.wait_ready(timeout=PATIENCE_S)
        yield process


def scores_of(process: Process, *completions: str) -> tuple[Score, ...]:
    with AlarmClient(process.url, timeout=PATIENCE_S) as client:
        samples = [
            Sample(prompt="?", completion=text, id=index) for index, text in enumerate(completions)
        ]
        return client.score(samples).scores


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in found for child in file.read_text().split()]


def test_failure_in_a_worker_fails_only_its_sample(
    workers: Process,
) -> None:
    texts = [text for word in ERRORS for text in ("a b", f"{word} a", "a b c")]
    scores = scores_of(workers, *texts)
    for text, score in zip(texts, scores, strict=True):
        code, message = ERRORS.get(text.split()[0], (None, ""))
        if code is None:
            assert (score.score, score.error) == (len(text.split()), None)
        else:
            assert score.error is not None
            assert (score.score, score.error.code) == (None, code)
            assert message in score.error.message


def test_killed_workers_are_replaced(workers: Process) -> None:
    for _ in range(3):
        for child in children_of(workers.popen.pid):
            os.kill(child, signal.SIGKILL)
        for index, score in enumerate(scores_of(workers, *("a " * n for n in range(1, 9)))):
            is_lost = score.error is not None and score.error.code == "model_failed"
            assert is_lost or score.score == index + 1
        assert [one.score for one in scores_of(workers, "a", "a b", "a b c")] == [1, 2, 3]


def test_workers_of_a_killed_server_end(workers: Process) -> None:
    children = children_of(workers.popen.pid)
    assert children
    workers.popen.kill()
    workers.popen.wait()
    give_up = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < give_up
        time.sleep(0.05)
