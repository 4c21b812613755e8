"""`/render` and `/token_offsets`: what models read, as the scores say; nothing is scored."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import tiny
from served import serving
from standin import FIGURE_1
from tcp import over_tcp

from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample
from alarm_service.api.app import create_app
from alarm_service.engine.rendering import Renderer
from alarm_service.errors import Overloaded
from alarm_service.settings import Settings

THOUGHT = "<think>Let me see.</think>It is Paris."
SAMPLE = {"prompt": "What is the capital of France? " * 3, "completion": THOUGHT, "id": 7}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tiny.sequence_classifier("llama", tmp_path_factory.mktemp("llama")).folder
    model = {
        "kind": "sequence",
        "checkpoint": str(folder),
        "template": "Q: {prompt} A: {completion}",
    }
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "models": {
                "rm": {**model, "max_tokens": 30},
                "strict": {**model, "max_tokens": 30, "truncation": "error"},
                "words": {"kind": "regex", "pattern": "Paris"},
            },
            "holistic": {"model": "rm"},
            "aspects": {"strict": {"model": "strict"}, "words": {"model": "words"}},
        }
    )
    app = create_app([recipe], Settings(device="cpu", log_level="error"))
    with over_tcp(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        while client.get("/health/ready").status_code != 200:
            pass
        yield client


def post(client: httpx.Client, path: str, *samples: Any, **more: Any) -> dict[str, Any]:
    answer = client.post(path, json={"samples": samples, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_render_has_what_the_score_says_and_the_text(client: httpx.Client) -> None:
    (rendering,) = post(client, "/render", SAMPLE)["renderings"]
    assert rendering["id"] == 7
    rm, strict, words = rendering["models"]
    (scored,) = post(client, "/score", SAMPLE)["scores"]
    assert scored["truncated"]
    for name in ("num_tokens", "truncated", "omitted"):
        assert rm[name] == scored[name]
    (text,) = rm["texts"]
    assert "".join(text["tokens"]) == f"<s> Q: {SAMPLE['prompt']} A: It is Paris."
    start, end = text["completion"]
    assert "".join(text["tokens"][start:end]).strip() == "It is Paris."
    assert len(text["tokens"]) - sum(b - a for a, b in text["dropped"]) == rm["num_tokens"]
    assert [THOUGHT[a:b] for a, b in rm["left_out"]] == ["<think>Let me see.</think>"]
    assert strict["error"]["code"] == "too_long"
    assert (words["texts"], words["omitted"]) == ([], ["thinking"])


def test_render_of_an_invalid_or_too_long_sample_fails_that_sample(client: httpx.Client) -> None:
    invalid = {**SAMPLE, "token_offsets": [[0, 999]]}
    long = {**SAMPLE, "prompt": "a" * 300_000}
    body = post(client, "/render", invalid, long, SAMPLE)
    errors = [one["models"][0]["error"] for one in body["renderings"]]
    assert [error and error["code"] for error in errors] == ["invalid_sample", "too_long", None]


def test_render_refuses_unknown_recipes_and_too_many_samples(client: httpx.Client) -> None:
    unknown = client.post("/render", json={"samples": [], "recipe": "nope"})
    assert unknown.status_code == 404
    many = client.post("/render", json={"samples": [SAMPLE] * 9})
    assert many.status_code == 413
    assert "a request may have 8" in many.json()["error"]["message"]


def test_token_offsets_are_those_of_the_models_tokenizer(client: httpx.Client) -> None:
    body = post(client, "/token_offsets", SAMPLE, model="rm")
    assert body["model"] == "rm"
    (found,) = body["completions"]
    assert found["id"] == 7
    spans = found["token_offsets"]
    assert [THOUGHT[a:b].strip() for a, b in spans][-1] == "."
    assert all(a < b for a, b in spans)
    reward = {**SAMPLE, "token_offsets": spans}
    (rewarded,) = post(client, "/hierarchical_reward", reward)["rewards"]
    assert len(rewarded["token_rewards"]) == len(spans)


def test_token_offsets_of_a_model_without_tokenizer_is_422(client: httpx.Client) -> None:
    answer = client.post("/token_offsets", json={"samples": [SAMPLE], "model": "words"})
    assert answer.status_code == 422
    assert "has no tokenizer" in answer.json()["error"]["message"]


async def test_renderer_refuses_more_than_it_can_queue() -> None:
    async with serving(FIGURE_1) as server:
        renderer = Renderer(server.engine)
        requests = [renderer.render(None, [Sample("?", "A")]) for _ in range(9)]
        found = await asyncio.gather(*requests, return_exceptions=True)
        renderer.close()
    assert [type(one).__name__ for one in found].count("Rendering") == 8
    (refused,) = (one for one in found if isinstance(one, Overloaded))
    assert refused.retry_after_s == 1


async def test_render_requires_a_key_where_the_server_has_one() -> None:
    async with serving(api_key="sesame") as server:
        for path in ("/render", "/token_offsets"):
            assert (await server.client.post(path, json={"samples": []})).status_code == 401
