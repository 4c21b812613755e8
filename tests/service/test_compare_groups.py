"""Comparisons over the real application: groups in one request and in several, and failures."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from comparing_judge import prefers, shown_answers
from scripted_judge import ScriptedJudge, judge_server, served

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

TEXTS = ["a", "a b", "a b c"]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with judge_server():
        yield


@asynccontextmanager
async def serving(
    **tables: Any,
) -> AsyncIterator[tuple[httpx.AsyncClient, ScriptedJudge]]:
    with served(prefers(len)) as (judge, keys):
        models = {"compared": {"kind": "compare", "endpoint": keys}, "length": {"kind": "length"}}
        table = {"name": "r", "models": models, "hierarchy": {"rule": "weighted_sum"}} | tables
        app = create_app([Recipe.model_validate(table)], Settings(device="cpu"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            await app.state.engine.life.until_ready()
            yield client, judge


def members(*texts: str, name: str = "g") -> list[dict[str, Any]]:
    return [
        {"prompt": "?", "completion": one, "group": name, "group_size": len(texts)} for one in texts
    ]


async def rewards(client: httpx.AsyncClient, *samples: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.post("/hierarchical_reward", json={"samples": samples})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rewards"]
    return found


AS_ASPECT = {
    "holistic": {"model": "length"},
    "aspects": {"better": {"model": "compared", "shaping": "none"}},
}
AS_HOLISTIC = {"holistic": {"model": "compared"}}
GATED = AS_ASPECT | {"hierarchy": {"rule": "hierarchical", "threshold": 2.5}}


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [(AS_HOLISTIC, [0, 0.5, 1]), (AS_ASPECT, [1, 2.5, 4]), (GATED, [1, 2, 4])],
)
async def test_compare_group_in_several_requests_has_the_rewards_of_one_request(
    tables: dict[str, Any], wanted: list[float]
) -> None:
    async with serving(**tables) as (client, judge):
        whole = await rewards(client, *members(*TEXTS))
        assert [one["reward"] for one in whole] == wanted
        num_asked = len(judge.bodies)
        apart = await asyncio.gather(*(rewards(client, one) for one in members(*TEXTS, name="h")))
        assert [one["reward"] for (one,) in apart] == wanted
        assert len(judge.bodies) == 2 * num_asked == 12


async def test_compare_member_that_fails_is_left_out_of_comparisons() -> None:
    async with serving(**AS_HOLISTIC, overlong={"action": "skip"}) as (client, judge):
        samples = members(*TEXTS)
        samples[2]["finish_reason"] = "length"
        for found in (
            await rewards(client, *samples),
            [one for (one,) in await asyncio.gather(*(rewards(client, one) for one in samples))],
        ):
            assert [one["reward"] for one in found] == [0, 1, None]
        assert all(sorted(shown_answers(body)) == TEXTS[:2] for body in judge.bodies)


async def test_compare_sample_alone_is_refused_with_what_to_do() -> None:
    async with serving(**AS_HOLISTIC) as (client, _):
        (one,) = await rewards(client, {"prompt": "?", "completion": "a"})
        assert one["error"]["code"] == "invalid_sample"
        assert "send all samples of a group" in one["error"]["message"]


async def test_compare_usage_is_that_of_the_request_that_completes_its_group() -> None:
    async with serving(**AS_HOLISTIC) as (client, _):
        answers = await asyncio.gather(
            *(
                client.post("/hierarchical_reward", json={"samples": [one]})
                for one in members("a", "b")
            )
        )
        usages = [answer.json()["usage"].get("judge") for answer in answers]
        assert [one["num_requests"] for one in usages if one is not None] == [2]
