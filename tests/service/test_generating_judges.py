"""Kind `judge` behind the server: ratings over HTTP, failures, callers that leave."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
from served import until

from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample
from alarm_service.api.app import create_app
from alarm_service.engine.engine import RewardEngine
from alarm_service.settings import Settings

#: After a completion's last letter: a rating, no rating, a rating that never comes.
SCRIPT = {
    "A": ("5",), "5": ("",), "C": ("z",), "z": ("",), "D": ("y",), "y": ("D",), ".": ("",),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.scripted_judge(tmp_path_factory.mktemp("judge"), SCRIPT).folder


@asynccontextmanager
async def serving(
    folder: Path, max_new_tokens: int, **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, RewardEngine]]:
    model = {
        "kind": "judge",
        "checkpoint": str(folder),
        "template": "{prompt} {completion}",
        "max_new_tokens": max_new_tokens,
    }
    recipe = Recipe.model_validate(
        {"name": "judged", "models": {"rm": model}, "holistic": {"model": "rm"}}
        | {"hierarchy": {"rule": "holistic_only"}}
    )
    app = create_app([recipe], Settings(device="cpu", **settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60
        ) as client,
    ):
        engine: RewardEngine = app.state.engine
        await engine.life.until_ready()
        yield client, engine


async def test_judge_rates_over_http_and_unreadable_answers_fail_alone(folder: Path) -> None:
    async with serving(folder, 8) as (client, _):
        samples = [{"prompt": "Rate", "completion": end} for end in "ACD"]
        answer = (await client.post("/score", json={"samples": samples})).json()
        (model,) = (await client.get("/models")).json()["models"]
        rated, unrated, cut = answer["scores"]
        assert rated["score"] == 5
        assert rated["error"] is None
        assert [one["score"] for one in (unrated, cut)] == [None, None]
        assert [one["error"]["code"] for one in (unrated, cut)] == ["model_failed"] * 2
        assert 'raise max_new_tokens: "yDyDyDyD"' in cut["error"]["message"]
        assert model["kind"] == "judge"
        assert model["read_token"] is None


async def test_judge_whose_caller_left_stops_generating(folder: Path) -> None:
    # Nothing else ends these answers before 500 tokens.
    async with serving(folder, 500) as (_, engine):
        (loaded,) = engine.model_set.models.values()
        num_steps = 0

        def count(*_: object) -> None:
            nonlocal num_steps
            num_steps += 1

        loaded.model._network._model.register_forward_hook(count)  # type: ignore[union-attr]
        call = asyncio.create_task(engine.pipeline.score(loaded, [Sample("Rate", "D")]))
        await until(lambda: num_steps > 2)
        call.cancel()
        (score,) = await engine.pipeline.score(loaded, [Sample("Rate", "A")])
        assert getattr(score, "value", score) == 5
        assert num_steps < 400
