"""A server with remote models: on another alarm server, and an LLM judge."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny
import torch
from fastapi import FastAPI
from remote_servers import Calls, judge
from served import app_of
from standin import FIGURE_1, PATIENCE_S, Letters, Words
from tcp import over_tcp
from tolerance import computed

from alarm_models.recipe.schema import Recipe
from alarm_service.api.app import create_app
from alarm_service.settings import Settings

SAMPLES = [
    {"prompt": "?", "completion": "AB B C AAC b c x", "token_offsets": [[0, 2], [3, 10], [11, 16]]},
    {"prompt": "?", "completion": "Ax Bx"},
    {"prompt": "?", "completion": "boom"},
    {"prompt": "?", "completion": "ab", "token_offsets": [[0, 99]]},
]


class Back:
    """The other server: Figure 1's stand-ins behind a real socket."""

    def __init__(self, port: int, words: Words) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.words = words


@pytest.fixture
def back() -> Iterator[Back]:
    words = Words()
    models = {"words": words} | {letter: Letters(letter) for letter in "abc"}
    with over_tcp(app_of([FIGURE_1], models)) as port:
        yield Back(port, words)


@asynccontextmanager
async def front(recipe: Recipe) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app([recipe], Settings(device="cpu"))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client,
    ):
        yield client


def elsewhere(url: str) -> Recipe:
    """Make Figure 1's recipe with all of its models on another server."""
    table = FIGURE_1.model_dump()
    names = list(table["models"])
    remote = {"kind": "remote", "api": "alarm", "url": url, "max_retries": 0}
    table["models"] = {name: remote | {"model": name} for name in names}
    return Recipe.model_validate(table)


async def rewards(client: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    answer = await client.post("/hierarchical_reward", json={"samples": SAMPLES} | body)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["rewards"]
    return found


async def test_remote_model_returns_the_other_servers_rewards_and_errors(back: Back) -> None:
    async with front(elsewhere(back.url)) as client, httpx.AsyncClient(base_url=back.url) as direct:
        assert await rewards(client) == await rewards(direct)
        codes = [one["error"] and one["error"]["code"] for one in await rewards(client)]
        assert codes == [None, None, "model_failed", "invalid_sample"]
        listed = (await client.get("/models")).json()["models"]
        assert {model["kind"] for model in listed} == {"remote"}
        assert all(model["fingerprint"] for model in listed)


async def test_remote_reward_lands_on_the_part_that_the_other_server_judged() -> None:
    thinks = "A b. <think>Hm, c.</think>"
    given = [{"prompt": "?", "completion": thinks, "token_offsets": [[0, 1], [2, 4], [5, 26]]}]
    local = Recipe.model_validate(
        {
            "name": "lengths",
            "models": {"words": {"kind": "length"}},
            "holistic": {"model": "words"},
            "hierarchy": {"rule": "holistic_only"},
        }
    )
    with over_tcp(create_app([local], Settings(device="cpu"))) as port:
        url = f"http://127.0.0.1:{port}"
        remote = {"kind": "remote", "api": "alarm", "url": url, "model": "words"}
        table = local.model_dump() | {"models": {"words": remote}}
        async with (
            front(Recipe.model_validate(table)) as client,
            httpx.AsyncClient(base_url=url, timeout=60) as direct,
        ):
            (one,) = await rewards(client, samples=given)
            assert [one] == await rewards(direct, samples=given)
            scored = (await direct.post("/score", json={"samples": given})).json()["scores"]
            plain = [{"prompt": "?", "completion": "A b."}]
            whole = (await direct.post("/score", json={"samples": plain})).json()["scores"]
    assert one["token_rewards"] == [0, 2, 0]
    assert scored[0]["judged"] == [[0, 4]]
    assert "judged" not in whole[0]


async def test_grades_of_segments_pass_through_a_chain_of_servers(tmp_path: Path) -> None:
    torch.manual_seed(7)
    head = torch.nn.Linear(32, 2).state_dict()
    tensors = {f"score.{name}": tensor for name, tensor in head.items()}
    folder = str(tiny.base_with(tmp_path / "prm", tensors).folder)
    aspect = {"model": "prm", "shaping": "none", "mean": 0.25, "std": 0.5}
    table = {
        "name": "solutions",
        "models": {
            "words": {"kind": "length"},
            "prm": {"kind": "steps", "checkpoint": folder, "head": "score"},
        },
        "holistic": {"model": "words"},
        "hierarchy": {"rule": "weighted_sum"},
        "aspects": {"steps": aspect},
    }
    local = Recipe.model_validate(table)
    offsets = [[0, 3], [5, 8], [10, 13]]
    given = [{"prompt": "?", "completion": "1+1\n\n=2.\n\nYes", "token_offsets": offsets}]

    def behind(port: int) -> Recipe:
        url = f"http://127.0.0.1:{port}"
        remote = {"kind": "remote", "api": "alarm", "url": url, "model": "prm"}
        return Recipe.model_validate(table | {"models": table["models"] | {"prm": remote}})

    with (
        over_tcp(create_app([local], Settings(device="cpu"))) as last,
        over_tcp(create_app([behind(last)], Settings(device="cpu"))) as middle,
    ):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{last}", timeout=60) as direct:
            (want,) = await rewards(direct, samples=given)
            (scored,) = (
                await direct.post("/score", json={"model": "prm", "samples": given})
            ).json()["scores"]
        async with front(behind(middle)) as client:
            (found,) = await rewards(client, samples=given)
    assert scored["graded"] is True
    grades = [segment["score"] for segment in scored["segments"]]
    # A step gets (grade - mean) / std.
    for one in (want, found):
        assert one["aspects"]["steps"]["token_rewards"] == computed(
            [(grade - 0.25) / 0.5 for grade in grades]
        )


async def test_remote_model_that_changed_is_not_used(back: Back) -> None:
    async with front(elsewhere(back.url)) as client:
        await rewards(client)
        back.words.fingerprint = "other words"  # type: ignore[misc]
        first, *_ = await rewards(client)
        assert first["error"]["code"] == "model_failed"
        assert "fingerprint is other words now, it was words" in first["error"]["message"]


async def test_remote_judge_without_verdict_fails_its_sample() -> None:
    with over_tcp(judge(Calls())) as port:
        model = {
            "kind": "remote",
            "api": "chat",
            "url": f"http://127.0.0.1:{port}/v1",
            "model": "judge",
            "rubric": "Rate from 1 to 10. 5 is fair. say:{completion}",
        }
        table = {
            "name": "judged",
            "models": {"length": {"kind": "length"}, "judge": model},
            "holistic": {"model": "length"},
            "hierarchy": {"rule": "weighted_sum"},
            "aspects": {"wit": {"model": "judge", "shaping": "none", "mean": 5.0}},
        }
        given = [{"prompt": "?", "completion": text} for text in ("I say 8", "well", "2")]
        async with front(Recipe.model_validate(table)) as client:
            found = await rewards(client, samples=given)
    assert [one["reward"] for one in found] == [3 + 3, None, 1 - 3]
    assert "aspect wit: the judge's answer has no number" in found[1]["error"]["message"]


async def until_told(client: httpx.AsyncClient, reason: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while reason not in (await client.get("/health/ready")).json()["reason"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_start_waits_for_an_unreachable_server() -> None:
    with over_tcp(FastAPI()) as port:
        pass  # nobody is at this port any more
    async with front(elsewhere(f"http://127.0.0.1:{port}")) as client:
        await until_told(client, "cannot be reached")
        assert (await client.get("/health/ready")).status_code == 503
        early = asyncio.create_task(rewards(client))
        models = {"words": Words()} | {letter: Letters(letter) for letter in "abc"}
        with over_tcp(app_of([FIGURE_1], models), port=port):
            found = await early
            await until_told(client, "ready")
    codes = [one["error"] and one["error"]["code"] for one in found]
    assert codes == [None, None, "model_failed", "invalid_sample"]


async def test_start_does_not_wait_for_a_wrong_server() -> None:
    with over_tcp(FastAPI()) as port:
        async with front(elsewhere(f"http://127.0.0.1:{port}")) as client:
            await until_told(client, "broken")
            reason = (await client.get("/health/ready")).json()["reason"]
    assert "answered 404" in reason
