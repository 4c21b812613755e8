"""A sleeping server has no models in memory; it refuses requests and wakes with the same scores."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
from served import samples, until
from standin import recipe

from alarm_client import AsyncAlarmClient
from alarm_client.errors import AlarmError, DeadlineExceeded
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

ADMIN = {"Authorization": "Bearer open"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny.sequence_classifier("llama", folder)
    return folder


@asynccontextmanager
async def serving(checkpoint: Path) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """Serve one classifier with an admin key; yield the engine and an admin's client."""
    spec = {"kind": "sequence", "checkpoint": str(checkpoint), "template": "{prompt} {completion}"}
    app = create_app(
        [recipe("one", models={"words": spec})], Settings(device="cpu", admin_key=("open",))
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=ADMIN
        ) as client,
    ):
        await app.state.engine.life.until_ready()
        yield app.state.engine, client


async def score(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/score", json={"samples": samples("a b c", "d")})


async def test_sleep_releases_the_models_and_wake_gives_the_same_scores(checkpoint: Path) -> None:
    async with serving(checkpoint) as (engine, client):
        before = (await score(client)).json()
        network = weakref.ref(engine.model_set.model(None).model._network)
        gone = (await client.post("/admin/sleep")).json()
        assert gone["gone"] == ["words"]
        gc.collect()
        assert network() is None
        woken = (await client.post("/admin/wake")).json()
        assert woken["loaded"] == ["words"]
        after = (await score(client)).json()
        assert (after["scores"], after["fingerprint"]) == (before["scores"], before["fingerprint"])


async def test_sleeping_server_refuses_requests_and_says_how_to_wake_it(checkpoint: Path) -> None:
    async with serving(checkpoint) as (_, client):
        await client.post("/admin/sleep")
        refused = await score(client)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "5"
        error = refused.json()["error"]
        assert (error["code"], error["retryable"]) == ("sleeping", True)
        assert "/admin/wake" in error["message"]
        ready, live = await client.get("/health/ready"), await client.get("/health/live")
        assert (ready.status_code, ready.json()["status"]) == (503, "sleeping")
        assert live.status_code == 200
        (model,) = (await client.get("/models")).json()["models"]
        assert model["fingerprint"] is None
        assert "alarm_ready 0.0" in (await client.get("/metrics")).text
        reload = await client.post("/admin/reload", json={})
        assert (reload.status_code, reload.json()["error"]["code"]) == (503, "sleeping")


async def test_sleeping_server_keeps_no_capacity_for_the_requests_it_refuses(
    checkpoint: Path,
) -> None:
    async with serving(checkpoint) as (_, client):
        await client.post("/admin/sleep")
        body = {"prompt": "a", "response": "b", "label": None}
        refused = await asyncio.gather(
            *(client.post("/compat/slime/one", json=body) for _ in range(8))
        )
        assert {one.status_code for one in refused} == {503}
        assert "alarm_reserved_tokens 0.0" in (await client.get("/metrics")).text


async def test_sleep_lets_running_requests_end_first(checkpoint: Path) -> None:
    async with serving(checkpoint) as (engine, client):
        with engine._model_sets.acquire():
            sleeping = asyncio.create_task(client.post("/admin/sleep"))
            await until(lambda: engine.life.is_sleeping)
            assert (await score(client)).status_code == 503
            assert not sleeping.done()
        assert (await sleeping).status_code == 200


async def test_sleep_and_wake_may_be_repeated(checkpoint: Path) -> None:
    async with serving(checkpoint) as (_, client):
        for change in ("wake", "sleep", "sleep", "wake", "wake"):
            assert (await client.post(f"/admin/{change}")).status_code == 200
        assert (await score(client)).status_code == 200


async def test_wake_that_fails_leaves_the_server_sleeping(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    text = config.read_text()
    async with serving(checkpoint) as (_, client):
        await client.post("/admin/sleep")
        try:
            config.write_text("{")
            refused = await client.post("/admin/wake")
            assert refused.status_code == 409
            assert "config.json" in refused.json()["error"]["message"]
            assert (await score(client)).status_code == 503
        finally:
            config.write_text(text)
        assert (await client.post("/admin/wake")).status_code == 200
        assert (await score(client)).status_code == 200


async def test_client_puts_the_server_to_sleep_and_wakes_it(checkpoint: Path) -> None:
    async with serving(checkpoint) as (_, admin):
        client = AsyncAlarmClient(
            "http://localhost", api_key="open", transport=admin._transport, timeout=30
        )
        before = await client.score(samples("a"))
        await client.sleep()
        with pytest.raises(DeadlineExceeded, match="sleeping"):
            await client.score(samples("a"), timeout=0.5)
        await client.wake()
        assert (await client.score(samples("a"))).scores == before.scores
        caller = AsyncAlarmClient("http://localhost", transport=admin._transport)
        with pytest.raises(AlarmError, match="admin"):
            await caller.sleep()


async def test_response_of_a_change_shows_its_result_and_not_that_of_the_next(
    checkpoint: Path,
) -> None:
    async with serving(checkpoint) as (_, client):
        changes = ["sleep", "wake", "sleep"]
        told = await asyncio.gather(*(client.post(f"/admin/{one}") for one in changes))
        assert [bool(one.json()["recipes"]) for one in told] == [False, True, False]
