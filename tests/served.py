"""Runs an app with stand-in models in its lifespan, and a client for it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from standin import PATIENCE_S, Letters, Words, recipe

from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import RewardModel
from alarm_service.api.app import create_app
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.model_set import ServedModel
from alarm_service.settings import Settings


@dataclass(frozen=True)
class Server:
    """An app in its lifespan, a client for it, and its models."""

    app: FastAPI
    client: httpx.AsyncClient
    words: Words
    letters: Mapping[str, Letters]

    @property
    def engine(self) -> RewardEngine:
        return self.app.state.engine

    async def score(self, *completions: str, **headers: str) -> httpx.Response:
        return await self.client.post(
            "/score", json={"samples": samples(*completions)}, headers=headers
        )

    async def reward(self, *completions: str, **body: Any) -> httpx.Response:
        return await self.client.post(
            "/hierarchical_reward", json={"samples": samples(*completions), **body}
        )

    async def until_waiting(self, num_samples: int) -> None:
        """Wait until this many samples are queued."""
        await until(lambda: self.engine.num_waiting == num_samples)


def samples(*completions: str) -> list[dict[str, Any]]:
    return [{"prompt": "?", "completion": completion} for completion in completions]


async def until(is_so: Callable[[], bool]) -> None:
    """Poll until a condition is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - a queue's length tells nobody
            await asyncio.sleep(0.001)


async def until_set(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


def app_of(
    recipes: Sequence[Recipe],
    models: Mapping[str, RewardModel],
    before_load: Callable[[], object] = lambda: None,
    on_failure: Callable[[], None] = lambda: None,
    **settings: Any,
) -> FastAPI:
    """Create an app with stand-in models; `before_load` runs in the loading thread."""

    def load(wanted: Mapping[str, ServedModel], _: torch.device) -> dict[str, RewardModel]:
        before_load()
        return {key: models[served.name] for key, served in wanted.items()}

    return create_app(recipes, Settings(device="cpu", **settings), load=load, on_failure=on_failure)


@asynccontextmanager
async def serving(
    *recipes: Recipe,
    words: Words | None = None,
    before_load: Callable[[], object] = lambda: None,
    on_failure: Callable[[], None] = lambda: None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """Serve recipes of stand-in models in this event loop; see `app_of`."""
    words = words or Words()
    letters = {letter: Letters(letter) for letter in "abc"}
    app = app_of(
        recipes or [recipe()], {"words": words, **letters}, before_load, on_failure, **settings
    )
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=PATIENCE_S
        ) as client,
    ):
        yield Server(app, client, words, letters)
        words.release.set()
