"""Models without a device, through HTTP."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from standin import Words
from standin import recipe as recipe_of

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.engine.devices import load_models
from alarm_service.engine.model_set import ServedModel
from alarm_service.settings import Settings

FUNCTIONS = """
import time

def vowels(sample):
    if sample.completion == "hang":
        time.sleep(1000)
    return sum(letter in "aeiou" for letter in sample.completion)
"""

WORDS = {"kind": "sequence", "checkpoint": "a/b", "template": "{completion}"}


@asynccontextmanager
async def serving(recipe: Recipe) -> AsyncIterator[httpx.AsyncClient]:
    """Serve a recipe whose neural model is a stand-in; all others are real."""

    def load(wanted: Mapping[str, ServedModel], device: Any) -> dict[str, Any]:
        rest = {key: one for key, one in wanted.items() if key != "words"}
        return {"words": Words(), **load_models(rest, device, max_remembered_bytes=0)}

    app = create_app([recipe], Settings(device="cpu"), load=load)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


def samples(*completions: str, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": "?", "completion": completion, **more} for completion in completions]


async def reward(client: httpx.AsyncClient, sample: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post("/hierarchical_reward", json={"samples": [sample]})
    found: dict[str, Any] = answer.json()["rewards"][0]
    return found


@pytest.fixture
def grammar() -> Recipe:
    return recipe_of(
        models={"words": WORDS, "grammar": {"kind": "grammar"}},
        hierarchy={"rule": "aspect_only"},
        aspects={"grammar": {"model": "grammar", "positive": 0, "negative": -1}},
    )


async def test_grammar_score_is_placed_on_every_token(grammar: Recipe) -> None:
    text = "It is an test."
    tokens = [[0, 2], [3, 5], [5, 6], [6, 8], [9, 13], [13, 14], [14, 14]]
    async with serving(grammar) as client:
        sample = samples(text, token_offsets=tokens)[0]
        found = await reward(client, sample)
        right, wrong = 0.5, pytest.approx(0.2689414)
        assert found["token_rewards"] == [right, right, right, wrong, right, right, right]
        assert found["aspects"]["grammar"]["segments"] == [
            {"start": 6, "end": 8, "label": "AnA", "score": None}
        ]


async def test_grammar_without_token_offsets_uses_words(grammar: Recipe) -> None:
    async with serving(grammar) as client:
        found = await reward(client, samples("It is an test.")[0])
        assert found["token_rewards"] is None
        assert found["reward"] == pytest.approx(3 * 0.5 + 0.2689414)


async def test_grammar_errors_of_the_request_are_placed_on_their_tokens(grammar: Recipe) -> None:
    tokens = [[0, 2], [2, 4], [4, 6]]
    sample = samples("abcdef", token_offsets=tokens, segments={"errors": [[4, 9], [1, 2]]})[0]
    async with serving(grammar) as client:
        found = await reward(client, sample)
        wrong = pytest.approx(0.2689414)
        assert found["token_rewards"] == [wrong, 0.5, wrong]


async def test_python_function_that_hangs_fails_only_its_sample(
    tmp_path: Path,
) -> None:
    (tmp_path / "my_vowels.py").write_text(FUNCTIONS)
    vowels = {"kind": "python", "function": "my_vowels:vowels", "path": str(tmp_path)}
    recipe = recipe_of(
        models={"words": WORDS, "vowels": vowels | {"timeout_s": 1.5, "workers": 1}},
        aspects={"vowels": {"model": "vowels", "shaping": "none"}},
        hierarchy={"rule": "weighted_sum"},
    )
    async with serving(recipe) as client:
        asked = {"samples": samples("a e", "hang", "aei")}
        answer = (await client.post("/hierarchical_reward", json=asked)).json()
        first, hung, last = answer["rewards"]
        assert (first["reward"], last["reward"]) == (2 + 2, 1 + 3)
        assert hung["error"] == {
            "code": "model_failed",
            "message": "aspect vowels: my_vowels:vowels took longer than 1.5 s",
        }
        assert (await client.get("/health/ready")).status_code == 200
        (after,) = (
            await client.post("/score", json={"model": "vowels", "samples": samples("o")})
        ).json()["scores"]
        assert after["score"] == 1


async def test_host_model_is_not_called_with_invalid_spans(grammar: Recipe) -> None:
    bad, good = samples("ab", token_offsets=[[0, 9]])[0], samples("ab")[0]
    async with serving(grammar) as client:
        body = {"model": "grammar", "samples": [bad, good]}
        answer = (await client.post("/score", json=body)).json()
        assert [one["error"] and one["error"]["code"] for one in answer["scores"]] == [
            "invalid_sample",
            None,
        ]


async def test_host_models_have_device_none(grammar: Recipe) -> None:
    async with serving(grammar) as client:
        await client.post("/score", json={"samples": []})
        found = {one["name"]: one for one in (await client.get("/models")).json()["models"]}
        assert found["grammar"]["device"] == "none"
        assert found["grammar"]["checkpoint"] is None
        assert found["grammar"]["fingerprint"]
        assert found["words"]["device"] == "cpu"
