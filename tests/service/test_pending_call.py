import asyncio
import threading

from alarm_models.types import Score
from alarm_service.engine.pipeline import PendingCall
from alarm_service.errors import Draining


def score(value: float) -> Score:
    return Score(value, None, 1, False)


async def test_pending_call_returns_outcomes_in_the_order_of_samples() -> None:
    job = PendingCall(3)
    threads = [
        threading.Thread(target=job.result_callback(index), args=(score(index),))
        for index in (2, 0, 1)
    ]
    for thread in threads:
        thread.start()
    assert await job.wait() == [score(0), score(1), score(2)]
    for thread in threads:
        thread.join()


async def test_pending_call_keeps_the_first_outcome_of_a_sample() -> None:
    job = PendingCall(1)
    receive = job.result_callback(0)
    receive(score(1))
    receive(Draining("too late"))
    assert await job.wait() == [score(1)]


async def test_pending_call_without_samples_is_done() -> None:
    assert await PendingCall(0).wait() == []


async def test_pending_call_cancelled_is_inactive() -> None:
    job = PendingCall(1)
    assert job.is_active()
    job.cancel()
    assert not job.is_active()
    job.result_callback(0)(score(1))


def test_pending_call_outcome_after_loop_closed_is_ignored() -> None:
    async def start() -> PendingCall:
        return PendingCall(1)

    job = asyncio.run(start())
    job.result_callback(0)(score(1))
