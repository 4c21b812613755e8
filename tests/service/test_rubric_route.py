"""A rubric over the real application: aspects, segments, usage, metrics and errors."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_judge import Say, Script, ScriptedJudge, judge_server, rubric_answer, served

from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

SAMPLE = {"prompt": "Say it.", "completion": "short and kind", "token_offsets": [[0, 6], [6, 14]]}


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with judge_server():
        yield


def quoting(answer: str, criterion: str) -> dict[str, Any]:
    word = criterion.split()[-1]
    quotes = [word] if word in answer else []
    return {"reason": "", "quotes": quotes, "met": bool(quotes)}


@asynccontextmanager
async def serving(
    script: Script, **endpoint: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedJudge]]:
    with served(script) as (judge, keys):
        criteria = {name: {"text": f"The answer is {name}"} for name in ("short", "kind", "rude")}
        criteria["rude"]["importance"] = "pitfall"
        prices = {"input_price": 100_000, "output_price": 200_000}
        checklist = {
            "kind": "rubric",
            "criteria": criteria,
            "criteria_per_call": 8,
            "quotes": True,
            "endpoint": keys | prices | endpoint,
        }
        aspect = {"model": "checklist", "shaping": "none"}
        table = {
            "name": "rubrics",
            "models": {"checklist": checklist},
            "holistic": {"model": "checklist"},
            "hierarchy": {"rule": "weighted_sum"},
            "aspects": {name: aspect | {"output": name} for name in ("kind", "rude")},
        }
        app = create_app([Recipe.model_validate(table)], Settings(device="cpu"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            yield client, judge


async def test_rubric_gives_rewards_on_quoted_tokens_with_usage_and_metrics() -> None:
    script = lambda body: [Say(rubric_answer(body, quoting))]  # noqa: E731
    async with serving(script) as (client, _):
        answer = await client.post("/hierarchical_reward", json={"samples": [SAMPLE]})
        body = answer.json()
        (reward,) = body["rewards"]
        assert reward["token_rewards"] == [0, 2]
        assert reward["aspects"]["kind"]["segments"] == [
            {"start": 10, "end": 14, "label": "met", "score": 1}
        ]
        assert reward["aspects"]["rude"]["reward"] == 0
        cost = {"num_requests": 1, "num_input_tokens": 10, "num_output_tokens": 5, "cost": 2}
        assert body["usage"]["judge"] == cost | {"num_cached": 0}
        scores = (await client.post("/score", json={"samples": [SAMPLE]})).json()
        assert scores["scores"][0]["outputs"] == {"short": 1, "kind": 1, "rude": 0}
        assert [*scores["scores"][0]["output_segments"]] == ["short", "kind"]
        metrics = (await client.get("/metrics")).text
        # The warm-up sample is a third question.
        assert 'alarm_judge_requests_total{model="checklist"} 3' in metrics
        assert 'alarm_judge_cost_total{model="checklist"} 6' in metrics


async def test_exceeded_budget_is_an_error_of_the_sample() -> None:
    script = lambda body: [Say(rubric_answer(body, quoting))]  # noqa: E731
    budget = {"requests": 1, "excess": "fail"}  # which the warm-up sample uses
    async with serving(script, budget=budget) as (client, _):
        answer = await client.post("/score", json={"samples": [SAMPLE]})
        assert answer.status_code == 200
        assert answer.json()["scores"][0]["error"]["code"] == "budget_exceeded"
        assert answer.json()["usage"] == {"num_tokens": 0, "num_computed_tokens": 0}


def test_cache_folder_is_relative_to_the_recipe_file(tmp_path: Path) -> None:
    endpoint = {"url": "http://judge", "model": "m", "cache": "./answers"}
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in endpoint.items())
    (tmp_path / "r.toml").write_text(
        f'[models.m]\nkind = "rubric"\nendpoint = {{ {keys} }}\n[holistic]\nmodel = "m"\n'
    )
    spec = load_recipe(str(tmp_path / "r.toml")).models["m"]
    assert spec.model_dump()["endpoint"]["cache"] == str(tmp_path / "answers")
