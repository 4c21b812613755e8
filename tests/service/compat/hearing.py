"""A server whose stand-in model remembers what it was shown."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
from served import Server, serving
from standin import Words

from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import Prepared
from alarm_models.types import Sample


class Hearing(Words):
    """`Words` that remembers its samples; a reward is the number of a completion's words."""

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[Sample] = []

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        self.samples += samples
        return super().prepare(samples)

    @property
    def heard(self) -> list[tuple[str, str]]:
        return [(one.prompt_text, one.completion_text) for one in self.samples]


@asynccontextmanager
async def hearing(*recipes: Recipe, **settings: Any) -> AsyncIterator[tuple[Server, Hearing]]:
    """Serve, and forget what loading showed the model."""
    words = Hearing()
    async with serving(*recipes, words=words, **settings) as server:
        await server.engine.life.until_ready()
        words.samples.clear()
        words.batches.clear()
        yield server, words


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return await server.client.post(path, json=body)


def error_of(answer: httpx.Response, status: int) -> str:
    """Return an error's message; it is of the documented shape and nothing besides."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "retryable"}
    return f"{error['code']}: {error['message']}"
