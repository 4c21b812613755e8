"""A rubric over the real application: aspects, segments, usage, metrics and errors."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from scripted_judge import Refuse, Say, Script, ScriptedJudge, judge_server, rubric_answer, served
from served import until
from structlog.testing import capture_logs

from alarm_models.recipe.loader import load_recipe
from alarm_models.recipe.schema import Recipe
from alarm_models.types import EndpointFailure
from alarm_service.api.app import create_app
from alarm_service.observability.endpoint_failures import EndpointFailureLog
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
        assert 'alarm_judge_requests_total{model="checklist"} 2' in metrics
        assert 'alarm_judge_cost_total{model="checklist"} 4' in metrics


async def test_published_rubric_of_a_sample_is_judged_and_a_bad_one_fails_alone() -> None:
    script = lambda body: [Say(rubric_answer(body, quoting))]  # noqa: E731
    published = [
        {"criterion": "The answer is kind", "points": "5", "tags": ["axis:tone"]},
        {"criterion": "The answer is long", "points": -3, "tags": []},
    ]
    bad = [*published, {"criterion": "T", "points": "five"}]
    async with serving(script) as (client, _):
        samples = [SAMPLE | {"fields": {"rubric": rubric}} for rubric in (published, bad)]
        answer = await client.post("/score", json={"samples": samples})
        good, refused = answer.json()["scores"]
        assert good["outputs"] == {
            "short": 1, "kind": 1, "rude": 0, "criterion_4": 1, "criterion_5": 0
        }  # fmt: skip
        assert refused["error"]["code"] == "invalid_sample"
        assert "fields.rubric[2].points must be a number, not 'five'" in refused["error"]["message"]


async def test_exceeded_budget_is_an_error_of_the_sample() -> None:
    script = lambda body: [Say(rubric_answer(body, quoting))]  # noqa: E731
    budget = {"requests": 1, "excess": "fail"}
    async with serving(script, budget=budget, warm_up=True) as (client, judge):
        answer = await client.post("/score", json={"samples": [SAMPLE]})
        assert len(judge.bodies) == 1
        assert answer.status_code == 200
        assert answer.json()["scores"][0]["error"]["code"] == "budget_exceeded"
        assert answer.json()["usage"] == {"num_tokens": 0, "num_computed_tokens": 0}


async def test_failing_judge_is_logged_once_a_reason_with_its_request_and_no_texts() -> None:
    answers = iter([[Say("My secret")], [Say("My secret")], [Say("My", "length")], Refuse(500)])
    structlog.reset_defaults()  # warnings too
    with capture_logs() as lines:
        async with serving(lambda body: next(answers)) as (client, _):
            for number in range(4):
                headers = {"X-Request-Id": f"r{number}"}
                await client.post("/score", json={"samples": [SAMPLE]}, headers=headers)
    lines = [one for one in lines if one["event"] == "no usable answer from an endpoint"]
    assert [(one["reason"], one["request_id"]) for one in lines] == [
        ("unreadable", "r0"), ("cut_off", "r2"), ("no_answer", "r3")
    ]  # fmt: skip
    for line in lines:
        assert (line["log_level"], line["model"]) == ("warning", "checklist")
        assert line["endpoint"].startswith("http://127.0.0.1:")
        assert "count" not in line
    assert "has no valid JSON object" in lines[0]["error"]
    assert lines[1]["error"].endswith("raise endpoint.parameters.max_tokens")
    assert "answered 500" in lines[2]["error"]
    assert "secret" not in str(lines)


async def test_log_of_endpoint_failures_counts_further_ones_by_model_and_reason() -> None:
    log = EndpointFailureLog(period_s=0.01)
    structlog.reset_defaults()  # warnings too
    with capture_logs() as lines:
        for model in ("a", "a", "b", "a"):
            log.observer(model)(EndpointFailure("http://judge", "refused"))
        await until(lambda: len(lines) == 3)
    found = [(one["model"], one.get("count")) for one in lines]
    assert found == [("a", None), ("b", None), ("a", 2)]


def test_cache_folder_is_relative_to_the_recipe_file(tmp_path: Path) -> None:
    endpoint = {"url": "http://judge", "model": "m", "cache": "./answers"}
    keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in endpoint.items())
    (tmp_path / "r.toml").write_text(
        f'[models.m]\nkind = "rubric"\nendpoint = {{ {keys} }}\n[holistic]\nmodel = "m"\n'
    )
    spec = load_recipe(str(tmp_path / "r.toml")).models["m"]
    assert spec.model_dump()["endpoint"]["cache"] == str(tmp_path / "answers")
