"""Requests that still run at the end of the drain time get 503."""

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
import transformers
from processes import PATIENCE_S, alarm_serve, connect, recipe_of, until_event
from served import serving, until_set

#: One forward pass of seconds, most of them within one operation of torch's.
LONG = {"samples": [{"prompt": "?", "completion": "fox " * 48_000}]}


async def test_end_of_drain_answers_503_to_queued_requests() -> None:
    async with serving() as server:
        asking = [asyncio.create_task(server.score("hold a")) for _ in range(3)]
        await until_set(server.words.held)
        server.engine.life.end()
        for answer in await asyncio.gather(*asking):
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "5"
            assert answer.json()["error"]["code"] == "draining"
            assert answer.json()["error"]["retryable"]
        assert (await server.client.get("/models")).status_code == 503


async def test_end_of_drain_answers_503_to_half_read_bodies() -> None:
    half_read = asyncio.Event()

    async def body() -> Any:
        yield b"{"
        half_read.set()
        await asyncio.Event().wait()

    async with serving() as server:
        asking = asyncio.create_task(server.client.post("/score", content=body()))
        await half_read.wait()
        server.engine.life.end()
        answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_end_of_drain_keeps_cancelled_requests_cancelled() -> None:
    async with serving() as server:
        asking = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with a model that accepts very long texts."""
    folder = tmp_path_factory.mktemp("long")
    made = tiny.config("llama", num_labels=1, max_position_embeddings=1 << 17)
    model = transformers.AutoModelForSequenceClassification.from_config(made)
    tokens = tiny.tokenizer(bos=True, eos=False)
    tokens.model_max_length = 1 << 17
    tiny.save(model, tokens, folder)
    file = folder / "long.toml"
    file.write_text(recipe_of(folder))
    return file


def test_end_of_drain_is_503_on_every_connection(recipe: Path) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{process.url}/score", json=LONG, timeout=PATIENCE_S))

    with (
        alarm_serve(recipe, "--drain-s", "1", "--max-queue-s", "3600") as process,
        connect(process) as half,
    ):
        until_event(process, "ready")
        before = _batches(process.url)
        half.sendall(b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        while _batches(process.url) == before:
            pass
        code, log = process.stop(signal.SIGTERM)
        for thread in asking:
            thread.join(PATIENCE_S)
        head, _, body = half.recv(65536).partition(b"\r\n\r\n")
    assert [answer.status_code for answer in answers] == [503] * 3
    assert {answer.json()["error"]["code"] for answer in answers} == {"draining"}
    assert {answer.headers["Retry-After"] for answer in answers} == {"5"}
    assert head.startswith(b"HTTP/1.1 503 ")
    assert json.loads(body)["error"]["retryable"]
    assert code == 0
    assert "Traceback" not in log
    assert all(json.loads(line) for line in log.splitlines())


def _batches(url: str) -> float:
    """How many batches the device has begun."""
    lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("alarm_batch_samples_c"))
