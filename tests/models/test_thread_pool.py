import asyncio
import threading

import pytest

from alarm_models.errors import SampleError
from alarm_models.reward_models import thread_pool as pools
from alarm_models.reward_models.thread_pool import CheckThreadPool
from alarm_models.types import Sample, Score

PATIENCE_S = 60


class Lengths:
    """Scores a completion with its length; "raise", "exit" and "hang" do so until `release`."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.hanging = threading.Event()

    def __call__(self, sample: Sample) -> Score:
        match sample.completion:
            case "raise":
                raise ValueError("no")
            case "exit":
                raise SystemExit("no")
            case "hang":
                self.hanging.set()
                self.release.wait(PATIENCE_S)
        return Score(float(len(sample.completion)), None, 0, False)


def samples(*completions: str) -> list[Sample]:
    return [Sample("?", completion) for completion in completions]


def said(outcomes: list[Score | SampleError]) -> list[float | str | None]:
    return [one.value if isinstance(one, Score) else one.message for one in outcomes]


async def test_thread_pool_returns_outcomes_in_order() -> None:
    texts = ["a" * (number % 7) for number in range(100)]
    outcomes = await CheckThreadPool(3).run(Lengths(), samples(*texts), PATIENCE_S)
    assert said(outcomes) == [number % 7 for number in range(100)]


async def test_thread_pool_check_that_raises_fails_its_sample_alone() -> None:
    outcomes = await CheckThreadPool(1).run(
        Lengths(), samples("a", "raise", "exit", "bb"), PATIENCE_S
    )
    assert said(outcomes) == [
        1,
        "the check failed: ValueError('no')",
        "the check failed: SystemExit('no')",
        2,
    ]


async def test_thread_pool_check_that_hangs_fails_its_sample_alone() -> None:
    lengths = Lengths()
    outcomes = await CheckThreadPool(1).run(lengths, samples("a", "hang", "bb", "hang", "ccc"), 0.2)
    late = "the check took longer than 0.2 s"
    assert said(outcomes) == [1, late, 2, late, 3]
    assert all(one.code == "model_failed" for one in outcomes if isinstance(one, SampleError))
    lengths.release.set()


async def test_thread_pool_check_that_hangs_after_its_caller_left_is_abandoned() -> None:
    pool, lengths = CheckThreadPool(1), Lengths()
    leaving = asyncio.create_task(pool.run(lengths, samples("hang"), 0.2))
    await asyncio.to_thread(lengths.hanging.wait, PATIENCE_S)
    leaving.cancel()
    assert said(await pool.run(lengths, samples("a"), 0.2)) == [1]
    lengths.release.set()


async def test_thread_pool_skips_samples_of_a_caller_that_left() -> None:
    pool, lengths, seen = CheckThreadPool(1), Lengths(), []

    def check(sample: Sample) -> Score:
        seen.append(sample.completion)
        return lengths(sample)

    leaving = asyncio.create_task(pool.run(check, samples("hang", "never"), PATIENCE_S))
    await asyncio.to_thread(lengths.hanging.wait, PATIENCE_S)
    leaving.cancel()
    await asyncio.wait((leaving,))
    lengths.release.set()
    assert said(await pool.run(check, samples("a"), PATIENCE_S)) == [1]
    assert seen == ["hang", "a"]


async def test_thread_pool_with_too_many_stuck_threads_fails_new_checks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pools, "_MAX_STUCK", 1)
    pool, lengths = CheckThreadPool(2), Lengths()
    assert said(await pool.run(lengths, samples("hang"), 0.2)) == [
        "the check took longer than 0.2 s"
    ]
    refused = "1 checks hang: no new check starts until one returns"
    assert said(await pool.run(lengths, samples("a", "b"), 0.2)) == [refused, refused]
    lengths.release.set()
    async with asyncio.timeout(PATIENCE_S):
        while said(await pool.run(lengths, samples("a"), 9)) != [1]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a lost thread that returns tells nobody


async def test_thread_pool_once_closed_has_no_threads() -> None:
    pool = CheckThreadPool(2)
    await pool.run(Lengths(), samples("a"), PATIENCE_S)
    threads = [one for one in threading.enumerate() if one.name == "check"]
    pool.close()
    for thread in threads[-2:]:
        await asyncio.to_thread(thread.join, PATIENCE_S)
        assert not thread.is_alive()
