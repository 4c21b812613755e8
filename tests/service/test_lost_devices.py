"""Hanging and failing devices, configured like GPUs; the stand-in models run on the CPU."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import torch
from served import Server, until, until_set
from standin import PATIENCE_S, Words, recipe

from alarm_service.api.app import create_app
from alarm_service.engine.model_set import ServedModel
from alarm_service.settings import Settings


@asynccontextmanager
async def serving_on(device: str) -> AsyncIterator[Server]:
    """Serve `Words` on devices of these names, a forward pass of which may take half a second."""
    words = Words()

    def load(wanted: dict[str, ServedModel], _: torch.device) -> dict[str, Words]:
        return dict.fromkeys(wanted, words)

    settings = Settings(device=device, forward_timeout_s=0.5, max_batch_tokens=100)
    app = create_app([recipe()], settings, load=load)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=PATIENCE_S
        ) as one,
    ):
        await app.state.engine.life.until_ready()
        yield Server(app, one, words, {})
        words.release.set()


async def test_hanging_pass_on_the_only_device_fails_only_its_callers_for_good() -> None:
    async with serving_on("cuda:0") as server:
        hanging = asyncio.create_task(server.reward("hold", "a"))
        await until_set(server.words.held)
        waiting = asyncio.create_task(server.score("b"))
        rewards = (await hanging).json()["rewards"]
        assert [one["error"]["code"] for one in rewards] == ["model_failed"] * 2
        for answer in (await waiting, await server.score("c")):
            assert answer.status_code == 503
            assert answer.json()["error"]["retryable"]
            assert "restart the server" in answer.json()["error"]["message"]
        assert (await server.client.get("/health/live")).status_code == 503


async def test_hanging_pass_fails_queued_samples_of_its_request_for_good() -> None:
    async with serving_on("cuda:0") as server:
        many = ["hold", *["word " * 60] * 3]  # in batches of 100 tokens
        scores = (await server.score(*many)).json()["scores"]
        assert [one["error"]["code"] for one in scores] == ["model_failed"] * 4
        assert "not scored: a forward pass of words takes" in scores[3]["error"]["message"]


async def test_hanging_device_recovers_while_others_serve() -> None:
    async with serving_on("cuda:0,cuda:1") as server:
        hanging = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        assert (await server.score("a b")).json()["scores"][0]["score"] == 2
        (lost,) = (await hanging).json()["scores"]
        assert lost["error"]["code"] == "model_failed"
        await until(lambda: bool(server.engine.life.degraded))
        ready = await server.client.get("/health/ready")
        assert ready.status_code == 200
        assert "degraded: a forward pass of words takes" in ready.json()["reason"]
        assert (await server.score("a b c")).json()["scores"][0]["score"] == 3
        server.words.release.set()
        await until(lambda: not server.engine.life.degraded)
        assert not any(device.is_lost for device in server.engine.device_pool._threads)
        assert (await server.score("a")).json()["scores"][0]["score"] == 1


async def test_failed_device_leaves_the_others_serving() -> None:
    async with serving_on("cuda:0,cuda:1") as server:
        (lost,) = (await server.score("poison")).json()["scores"]
        assert lost["error"]["code"] == "model_failed"
        assert (await server.score("a")).json()["scores"][0]["score"] == 1
        await until(lambda: bool(server.engine.life.degraded))
        assert (
            "illegal memory access" in (await server.client.get("/health/ready")).json()["reason"]
        )
        again = (await server.score("poison")).json()["scores"]
        assert "do not send it again" in again[0]["error"]["message"]


async def test_engine_is_computing_until_its_last_forward_pass_ended() -> None:
    async with serving_on("cpu") as server:
        running = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        assert server.engine.is_computing
        server.words.release.set()
        await running
        await server.engine.close()
        assert not server.engine.is_computing
