import asyncio
import threading

import pytest
from httpx import Response
from served import Server, serving, until, until_set
from standin import PATIENCE_S, Words

from alarm_models.errors import CheckpointError


def assert_broken(answer: Response) -> None:
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "broken"
    assert answer.json()["error"]["retryable"]
    assert answer.headers["Retry-After"] == "5"


async def until_ready(server: Server) -> None:
    await server.engine.life.until_ready()


async def test_health_requests_wait_while_models_load() -> None:
    loading, may_load = threading.Event(), threading.Event()

    def before_load() -> None:
        loading.set()
        may_load.wait(PATIENCE_S)

    async with serving(before_load=before_load) as server:
        await until_set(loading)
        early = asyncio.create_task(server.score("a b c"))
        await until(lambda: server.engine.admission.num_queued > 0)
        ready = await server.client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.headers["Retry-After"] == "1"
        assert ready.json()["status"] == "loading"
        assert ready.json()["reason"] == "loading words"
        assert ready.json()["error"] == {
            "code": "loading",
            "message": "loading words",
            "retryable": True,
        }
        assert (await server.client.get("/health/live")).json() == {
            "status": "loading",
            "reason": "loading words",
        }
        may_load.set()
        assert (await early).json()["scores"][0]["score"] == 3


async def test_health_is_ready_once_every_model_is_warmed_up() -> None:
    async with serving() as server:
        await until_ready(server)
        assert server.words.batches == [1]
        ready = await server.client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json() == {"status": "ready", "reason": "ready"}


async def test_health_deadline_may_pass_while_models_load() -> None:
    may_load = threading.Event()
    async with serving(before_load=lambda: may_load.wait(PATIENCE_S)) as server:
        answer = await server.score("a", **{"X-Request-Timeout-Ms": "1"})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_passed"
        assert answer.json()["error"]["message"].startswith("no result within 0.001 s")
        may_load.set()


async def test_models_route_lists_models_while_they_load() -> None:
    may_load = threading.Event()
    async with serving(before_load=lambda: may_load.wait(PATIENCE_S)) as server:
        listed = (await server.client.get("/models")).json()
        assert listed["models"][0]["name"] == "words"
        assert listed["models"][0]["fingerprint"] is None
        may_load.set()


@pytest.mark.parametrize("error", [CheckpointError("no such folder"), KeyError("lm_head.weight")])
async def test_health_is_broken_if_models_fail_to_load(error: Exception) -> None:
    failed = threading.Event()

    def before_load() -> None:
        raise error

    async with serving(before_load=before_load, on_failure=failed.set) as server:
        assert_broken(await server.score("a"))
        assert_broken(await server.reward("a"))
        for path in ("/health/live", "/health/ready"):
            answer = await server.client.get(path)
            assert answer.status_code == 503
            assert str(error) in answer.json()["reason"]
        assert failed.is_set()


async def test_health_is_broken_if_a_model_cannot_score() -> None:
    words = Words(max_samples=0)
    async with serving(words=words) as server:
        answer = await server.score("a")
        assert_broken(answer)
        assert "model 'words' cannot score" in answer.json()["error"]["message"]


async def test_lost_device_fails_all_requests() -> None:
    async with serving() as server:
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        doomed = [asyncio.create_task(server.score("poison", "a")) for _ in range(3)]
        await server.until_waiting(6)
        server.words.release.set()
        assert (await holder).status_code == 200
        for one in doomed:  # any of them may be the cause: none is to be sent again
            errors = [score["error"] for score in (await one).json()["scores"]]
            assert [error["code"] for error in errors] == ["model_failed"] * 2
            assert "it was one of 6 in its batch" in errors[0]["message"]
        late = await server.score("a")
        assert_broken(late)
        assert "illegal memory access" in late.json()["error"]["message"]
        live = await server.client.get("/health/live")
        assert live.status_code == 503
        assert live.json()["error"]["code"] == "broken"
        assert (await server.client.get("/health/ready")).status_code == 503


async def test_sample_that_ends_the_device_thread_fails_alone() -> None:
    async with serving() as server:
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        doomed = [asyncio.create_task(server.score("die", "a b")) for _ in range(3)]
        await server.until_waiting(6)
        server.words.release.set()
        assert (await holder).status_code == 200
        for one in doomed:
            dead, alive = (await one).json()["scores"]
            assert dead["error"]["code"] == "model_failed"
            assert "SystemExit('the end')" in dead["error"]["message"]
            assert alive["score"] == 2
        # All together, then each sample alone.
        assert sorted(server.words.batches[2:]) == [1, 1, 1, 1, 1, 1, 6]
        again = (await server.score("die", "a")).json()["scores"]
        assert "timed out on this sample before" in again[0]["error"]["message"]
        assert again[1]["score"] == 1
        assert sorted(server.words.batches[2:]) == [1] * 7 + [6]
        assert (await server.client.get("/health/ready")).json()["reason"] == "ready"


async def test_ready_metric_is_the_readiness() -> None:
    async with serving() as server:
        await until_ready(server)
        assert "alarm_ready 1.0" in (await server.client.get("/metrics")).text
        await server.score("poison")
        await until(lambda: server.engine.life.state == "broken")
        assert "alarm_ready 0.0" in (await server.client.get("/metrics")).text


async def test_draining_server_finishes_running_requests_and_refuses_new_ones() -> None:
    async with serving() as server:
        running = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.engine.life.drain()
        refused = await server.score("a")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert refused.headers["Retry-After"] == "5"
        ready = await server.client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
        assert (await server.client.get("/health/live")).status_code == 200
        server.words.release.set()
        assert (await running).status_code == 200


async def test_draining_server_does_not_wait_for_models() -> None:
    loading, may_load = threading.Event(), threading.Event()

    def before_load() -> None:
        loading.set()
        may_load.wait(PATIENCE_S)

    async with serving(before_load=before_load) as server:
        await until_set(loading)
        early = asyncio.create_task(server.score("a"))
        await until(lambda: server.engine.admission.num_queued > 0)
        server.engine.life.drain()
        assert (await early).json()["error"]["code"] == "draining"
    assert not may_load.is_set()
    assert server.engine.life.failure is None
    may_load.set()


async def test_queued_request_when_the_server_stops_fails_with_draining() -> None:
    async with serving() as server:
        holder = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        waiting = asyncio.create_task(server.score("a"))
        await server.until_waiting(1)
        stopping = asyncio.create_task(server.engine.close())
        assert (await waiting).json()["error"]["code"] == "draining"
        server.words.release.set()
        await stopping
        assert (await holder).status_code == 200
