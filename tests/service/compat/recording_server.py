"""A server whose stand-in model records its samples."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import torch
from served import Server, serving
from standin import Words

from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.schema import Recipe
from alarm_models.reward_models.base import Prepared
from alarm_models.types import Sample, Score


class RecordingWords(Words):
    """`Words` that records its samples; the reward is the number of words of a completion.

    Its scores say that it was not shown ``omitted``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples: list[Sample] = []
        self.omitted: tuple[str, ...] = ()

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        self.samples += samples
        return super().prepare(samples)

    def read(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        return replace(super().read(features, outputs), omitted=self.omitted)

    @property
    def heard(self) -> list[tuple[str, str]]:
        return [(one.prompt_text, one.completion_text) for one in self.samples]


@asynccontextmanager
async def recording_server(
    *recipes: Recipe, **settings: Any
) -> AsyncIterator[tuple[Server, RecordingWords]]:
    """Serve; the warm-up sample is not recorded."""
    words = RecordingWords()
    async with serving(*recipes, words=words, **settings) as server:
        await server.engine.life.until_ready()
        words.samples.clear()
        words.batches.clear()
        yield server, words


async def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return await server.client.post(path, json=body)


def error_of(answer: httpx.Response, status: int) -> str:
    """Return an error's message; the body has exactly the documented format."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "retryable"}
    return f"{error['code']}: {error['message']}"
