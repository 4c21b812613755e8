import asyncio
import threading

import pytest
from served import samples, serving, until_set
from standin import PATIENCE_S

from alarm_service.scheduling.watchdog import Watchdog


@pytest.fixture
def late() -> threading.Event:
    return threading.Event()


def test_a_block_that_takes_too_long_is_told_while_it_runs(late: threading.Event) -> None:
    watchdog = Watchdog(0.05, late.set)
    watchdog.start()
    with watchdog.watching():
        assert late.wait(PATIENCE_S)


def test_blocks_that_end_in_time_are_never_told(late: threading.Event) -> None:
    watchdog = Watchdog(PATIENCE_S, late.set)
    watchdog.start()
    for _ in range(1000):
        with watchdog.watching():
            pass
    watchdog.close()
    watchdog._thread.join(PATIENCE_S)
    assert not watchdog._thread.is_alive()
    assert not late.is_set()


def test_a_block_after_others_and_a_pause_is_watched_too(late: threading.Event) -> None:
    watchdog = Watchdog(0.05, late.set)
    watchdog.start()
    with watchdog.watching():
        pass
    while not watchdog._is_idle:  # it tells nobody
        pass
    with watchdog.watching():
        assert late.wait(PATIENCE_S)


async def test_a_forward_pass_that_never_ends_breaks_the_server_and_all_hear_so() -> None:
    async with serving(forward_timeout_s=0.5) as server:
        await server.engine.life.until_ready()
        hanging = asyncio.create_task(server.score("hold", "a"))
        await until_set(server.words.held)
        waiting = asyncio.create_task(server.score("b"))
        for answer in (await hanging, await waiting, await server.score("c")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "broken"
            assert "words takes longer than 0.5 s" in answer.json()["error"]["message"]
        for path in ("/health/live", "/health/ready"):
            health = await server.client.get(path)
            assert health.status_code == 503
            assert "--forward-timeout-s" in health.json()["reason"]
        assert "\nalarm_ready 0.0\n" in (await server.client.get("/metrics")).text


async def test_a_forward_pass_may_take_its_time_where_nobody_set_one() -> None:
    async with serving(forward_timeout_s=0) as server:
        slow = asyncio.create_task(server.score("hold"))
        await until_set(server.words.held)
        server.words.release.set()
        assert (await slow).json()["scores"][0]["score"] == 1


async def test_a_first_run_that_never_ends_is_a_failure_to_load() -> None:
    async with serving(forward_timeout_s=0.2) as server:
        server.words.forward = lambda batch: server.words.release.wait(PATIENCE_S)  # type: ignore[assignment]
        answer = await server.client.post("/score", json={"samples": samples("a")})
        assert answer.json()["error"]["code"] == "broken"
        assert server.engine.life.failure is not None
