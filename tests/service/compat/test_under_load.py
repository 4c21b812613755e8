"""Many single-sample requests of trainers: batching, waiting for capacity, metrics."""

import asyncio
import base64

import httpx
from recording_server import RecordingWords, post, recording_server
from served import app_of, until, until_set
from standin import recipe
from tcp import over_tcp

KEY = "sésame"
SAMPLE = {"prompt": "Q?", "response": "a b", "label": None}
HELD = SAMPLE | {"response": "hold"}


async def test_compat_samples_of_many_requests_share_a_batch() -> None:
    async with recording_server() as (server, words):
        first = asyncio.create_task(post(server, "/compat/slime/plain", **HELD))
        await until_set(words.held)
        others = [
            asyncio.create_task(post(server, "/compat/slime/plain", **SAMPLE)) for _ in "x" * 9
        ]
        await server.until_waiting(9)
        words.release.set()
        assert [(await one).json() for one in (first, *others)] == [1] + [2] * 9
        assert words.batches == [1, 9]


async def test_compat_route_waits_for_capacity_where_score_is_refused() -> None:
    async with recording_server(max_queued_tokens=20) as (server, words):
        first = asyncio.create_task(post(server, "/compat/slime/plain", **HELD))
        await until_set(words.held)
        second = asyncio.create_task(post(server, "/compat/slime/plain", **SAMPLE))
        third = asyncio.create_task(post(server, "/compat/slime/plain", **SAMPLE))
        assert (await server.score("a")).status_code == 429
        await asyncio.sleep(0)
        assert not second.done()
        words.release.set()
        assert [(await one).json() for one in (first, second, third)] == [1, 2, 2]
        assert server.engine.admission.num_queued == 0


async def test_wait_for_capacity_timeout_releases_the_claim() -> None:
    async with recording_server(max_queued_tokens=20) as (server, words):
        first = asyncio.create_task(post(server, "/compat/slime/plain", **HELD))
        await until_set(words.held)
        gone = await server.client.post(
            "/compat/slime/plain", json=SAMPLE, headers={"X-Request-Timeout-Ms": "1"}
        )
        assert gone.status_code == 504
        words.release.set()
        assert (await first).json() == 1
        assert words.heard == [("Q?", "hold")]


async def test_compat_paths_share_route_labels() -> None:
    async with recording_server() as (server, _):
        await post(server, "/compat/slime/plain", **SAMPLE)
        await post(server, "/compat/slime/words?format=dict", **SAMPLE)
        await post(server, "/compat/slime/nobody", **SAMPLE)
        await post(server, "/compat/nobody/plain", **SAMPLE)
        text = (await server.client.get("/metrics")).text
        assert 'alarm_requests_total{route="/compat/slime/{name}",status="200"} 2.0' in text
        assert 'alarm_requests_total{route="/compat/slime/{name}",status="404"} 1.0' in text
        assert 'alarm_requests_total{route="other",status="404"} 1.0' in text


async def test_compat_key_in_url_is_accepted() -> None:
    app = app_of([recipe()], {"words": RecordingWords()}, api_key=KEY)
    with over_tcp(app) as port:
        path = f"127.0.0.1:{port}/compat/slime/plain"
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"http://{path}", json=SAMPLE)).status_code == 401
            answer = await client.post(f"http://anybody:{KEY}@{path}", json=SAMPLE)
        assert answer.json() == 2
        sent = answer.request.headers["authorization"].removeprefix("Basic ")
        assert base64.b64decode(sent).decode() == f"anybody:{KEY}"


async def test_compat_rollout_of_thousands_is_accepted() -> None:
    prompt = "Q?"
    async with recording_server(max_samples=32) as (server, words):
        body = {"query": ["Q? a b"] * 2048, "prompts": [prompt] * 2048}
        answer = await post(server, "/get_reward", **body)
        assert answer.json()["rewards"] == [2] * 2048
        one_more = {"query": ["Q? a"] * 2049, "prompts": [prompt] * 2049}
        assert (await post(server, "/get_reward", **one_more)).status_code == 413
        await until(lambda: sum(words.batches) == 2048)
