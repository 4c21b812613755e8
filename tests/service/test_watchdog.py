import asyncio
import threading

import httpx
import pytest
from served import Server, samples, serving, until, until_set
from standin import FIGURE_1, PATIENCE_S

from alarm_models.modeling.network import ModelInitLock
from alarm_service.engine import worker as runtime
from alarm_service.engine.worker import Watchdog


@pytest.fixture
def late() -> threading.Event:
    return threading.Event()


def test_watchdog_late_block_is_reported_while_it_runs(late: threading.Event) -> None:
    watchdog = Watchdog(0.05, late.set)
    watchdog.start()
    with watchdog.watch():
        assert late.wait(PATIENCE_S)


def test_watchdog_blocks_that_end_in_time_are_not_reported(late: threading.Event) -> None:
    watchdog = Watchdog(PATIENCE_S, late.set)
    watchdog.start()
    for _ in range(1000):
        with watchdog.watch():
            pass
    watchdog.close()
    watchdog._thread.join(PATIENCE_S)
    assert not watchdog._thread.is_alive()
    assert not late.is_set()


def test_watchdog_watches_a_block_after_a_pause(late: threading.Event) -> None:
    watchdog = Watchdog(0.05, late.set)
    watchdog.start()
    with watchdog.watch():
        pass
    while not watchdog._is_idle:  # it tells nobody
        pass
    with watchdog.watch():
        assert late.wait(PATIENCE_S)


def test_watchdog_restart_begins_the_time_of_the_block_again(late: threading.Event) -> None:
    watchdog = Watchdog(PATIENCE_S, late.set)
    watchdog.restart()
    assert watchdog._begun is None  # no block runs
    with watchdog.watch():
        begun = watchdog._begun
        watchdog.restart()
        assert begun is not None
        assert watchdog._begun > begun


async def held(server: Server) -> "asyncio.Task[httpx.Response]":
    """Score a sample whose forward pass waits for `release`; return once it waits."""
    slow = asyncio.create_task(server.score("hold"))
    await until_set(server.words.held)
    return slow


async def test_worker_hanging_forward_pass_fails_only_its_sample_for_good() -> None:
    async with serving(forward_timeout_s=0.5) as server:
        await server.engine.life.until_ready()
        hanging = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        waiting = asyncio.create_task(server.score("b c"))
        (error,) = (score["error"] for score in (await hanging).json()["scores"])
        assert error["code"] == "model_failed"
        assert "words takes longer than 0.5 s (--forward-timeout-s)" in error["message"]
        assert (await waiting).json()["scores"][0]["score"] == 2
        ready = await server.client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["reason"].startswith("ready; degraded: a forward pass of words takes")
        metrics = (await server.client.get("/metrics")).text
        assert "\nalarm_given_up_passes 1.0\n" in metrics
        assert '\nalarm_timed_out_samples_total{model="words"} 1.0\n' in metrics
        num_batches = len(server.words.batches)
        again = (await server.score("hold")).json()["scores"]
        assert "do not send it again" in again[0]["error"]["message"]
        assert len(server.words.batches) == num_batches  # it was not run
        server.words.release.set()
        await until(lambda: not server.engine.life.degraded)
        assert (await server.client.get("/health/ready")).json()["reason"] == "ready"


async def test_worker_hanging_pass_scores_the_rest_of_its_batch_alone() -> None:
    async with serving(forward_timeout_s=0.5) as server:
        await server.engine.life.until_ready()
        scores = (await server.score("a", "hold", "a b", "a b c")).json()["scores"]
        assert [one["score"] for one in scores] == [1, None, 2, 3]
        assert [one["error"] and one["error"]["code"] for one in scores] == [
            None,
            "model_failed",
            None,
            None,
        ]
        assert sorted(server.words.batches[1:]) == [1, 1, 1, 1, 4]


async def test_reward_request_with_hanging_sample_is_answered() -> None:
    async with serving(forward_timeout_s=0.5) as server:
        rewards = (await server.reward("a b", "hold")).json()["rewards"]
        assert [one["reward"] for one in rewards] == [2, None]


async def test_compat_route_hanging_sample_is_not_retryable() -> None:
    async with serving(forward_timeout_s=0.5) as server:
        answer = await server.client.post(
            "/compat/slime/plain", json={"prompt": "?", "response": "hold", "label": None}
        )
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "model_failed"
        assert not answer.json()["error"]["retryable"]


async def test_worker_too_many_hanging_passes_break_the_server() -> None:
    async with serving(forward_timeout_s=0.2) as server:
        await server.engine.life.until_ready()
        for number in range(5):
            text = "hold " * (1 + number)
            (score,) = (await server.score(text)).json()["scores"]
            assert score["error"]["code"] == "model_failed"
        late = await server.score("a")
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "broken"
        assert "restart the server" in late.json()["error"]["message"]
        assert (await server.client.get("/health/live")).status_code == 503


async def test_worker_long_pass_of_one_model_does_not_delay_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_RELIEF_S", 0.2)
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        slow = await held(server)
        same = asyncio.create_task(server.score("a b"))
        other = await server.client.post("/score", json={"model": "a", "samples": samples("A a")})
        assert other.json()["scores"][0]["score"] == 0.5
        assert server.words.batches == [1, 1]  # no second pass of the same model beside the first
        server.words.release.set()
        assert (await slow).json()["scores"][0]["score"] == 1
        assert (await same).json()["scores"][0]["score"] == 2


def sharing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make two models as those of two recipes on one checkpoint with dynamic RoPE."""
    for model in (server.words, server.letters["a"]):
        monkeypatch.setattr(model, "stateful", "one network", raising=False)


async def test_worker_long_pass_delays_models_that_share_what_it_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_RELIEF_S", 0.1)
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        sharing(server, monkeypatch)
        slow = await held(server)
        shared, another = (
            asyncio.create_task(
                server.client.post("/score", json={"model": name, "samples": samples("A a")})
            )
            for name in "ab"
        )
        assert (await another).status_code == 200
        assert not shared.done()
        server.words.release.set()
        assert (await shared).json()["scores"][0]["score"] == 0.5
        assert (await slow).json()["scores"][0]["score"] == 1


async def test_worker_hanging_pass_of_a_model_that_it_changes_breaks_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The pass goes on, and would make the scores of others wrong.
    async with serving(FIGURE_1, forward_timeout_s=0.3) as server:
        await server.engine.life.until_ready()
        sharing(server, monkeypatch)
        (score,) = (await server.score("hold")).json()["scores"]
        assert score["error"]["code"] == "model_failed"
        late = await server.client.post("/score", json={"model": "a", "samples": samples("A a")})
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "broken"
        assert (await server.client.get("/health/live")).status_code == 503


def test_model_init_lock_does_not_wait_for_an_abandoned_pass() -> None:
    construction = ModelInitLock()
    inside, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with construction.shared():
            inside.set()
            leave.wait(PATIENCE_S)

    hanging = threading.Thread(target=hang)
    hanging.start()
    assert inside.wait(PATIENCE_S)
    construction.give_up(hanging.ident or 0)
    with construction.exclusive():
        pass
    leave.set()
    hanging.join(PATIENCE_S)


async def test_worker_without_timeout_lets_a_forward_pass_run() -> None:
    async with serving(forward_timeout_s=0) as server:
        slow = await held(server)
        server.words.release.set()
        assert (await slow).json()["scores"][0]["score"] == 1


async def test_warm_up_that_times_out_fails_loading() -> None:
    async with serving(forward_timeout_s=0.2) as server:
        server.words.forward = lambda batch: server.words.release.wait(PATIENCE_S)  # type: ignore[assignment]
        answer = await server.client.post("/score", json={"samples": samples("a")})
        assert answer.json()["error"]["code"] == "broken"
        assert server.engine.life.failure is not None
