"""Recipes with `dense = "prefix"`, against transformers run on each prefix alone."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tiny import Checkpoint
from tolerance import by_hand, computed

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

pytestmark = pytest.mark.numeric

TEMPLATE = "Human: {prompt}\nAssistant: {completion}</s>"
PROMPT = "What is the capital of France, and does the quick brown fox know?"
COMPLETION = "Paris is the capital. The dog does not mind! It is lazy."
#: The ends of its three sentences, and the policy's tokens: words, and the end of the text.
ENDS = (21, 44, 56)
TOKENS = [[one.start(), one.end()] for one in re.finditer(r"\S+", COMPLETION)] + [[56, 56]]
SAMPLE = {"prompt": PROMPT, "completion": COMPLETION, "token_offsets": TOKENS}
#: Where the sentences end among the tokens.
LAST = (3, 8, 11)


def recipe_of(checkpoint: Checkpoint, **tables: Any) -> Recipe:
    rm = {"kind": "sequence", "checkpoint": str(checkpoint.folder), "template": TEMPLATE}
    given = {
        "name": "prefixes",
        "models": {"rm": rm | tables.pop("rm", {})},
        "holistic": {"model": "rm", "dense": "prefix"},
        "hierarchy": {"rule": "holistic_only"},
    }
    return Recipe.model_validate(given | tables)


@asynccontextmanager
async def serving(recipe: Recipe, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app([recipe], Settings(device="cpu", **settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60
        ) as client,
    ):
        await app.state.engine.life.until_ready()
        yield client


async def reward(
    client: httpx.AsyncClient, *samples: Mapping[str, Any], **body: Any
) -> dict[str, Any]:
    answer = await client.post("/hierarchical_reward", json={"samples": samples} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def plain_scores(checkpoint: Checkpoint, completion: str, ends: Sequence[int]) -> list[float]:
    """Score the empty completion and each prefix with transformers, each alone."""
    prefixes = [completion[:end] for end in (0, *ends)]
    texts = [TEMPLATE.format(prompt=PROMPT, completion=prefix) for prefix in prefixes]
    return [checkpoint.plain_logits(text).item() for text in texts]


def on_tokens(values: Mapping[int, float], num_tokens: int = len(TOKENS)) -> list[float]:
    return [values.get(index, 0.0) for index in range(num_tokens)]


async def test_holistic_segments_earn_what_they_add_to_the_score(llama: Checkpoint) -> None:
    s = plain_scores(llama, COMPLETION, ENDS)
    async with serving(recipe_of(llama)) as client:
        (one,) = (await reward(client, SAMPLE))["rewards"]
    gains = {LAST[0]: s[1] - s[0], LAST[1]: s[2] - s[1], LAST[2]: s[3] - s[2]}
    assert one["token_rewards"] == computed(on_tokens({0: s[0]} | gains))
    assert one["reward"] == by_hand(sum(one["token_rewards"]))
    assert one["reward"] == computed(s[3])
