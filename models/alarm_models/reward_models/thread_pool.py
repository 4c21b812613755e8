"""Threads that check samples one after another, and are given up where a check hangs."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from alarm_models.errors import SampleError
from alarm_models.types import Sample, Score

__all__ = ["Check", "CheckThreadPool"]

#: Scores one sample, in any thread, or raises `SampleError`.
Check = Callable[[Sample], Score]

#: Samples that a thread takes at a time.
_CHUNK = 16

#: Threads that may hang at once: one cannot be killed, and may hold a core for as long as it hangs.
_MAX_STUCK = 16


class CheckThreadPool:
    """Runs checks on daemon threads, which start with the first sample.

    A check that raises, whatever it raises, costs its own sample. So does one that takes longer
    than its time: its thread is given up, and another takes its place. While too many hang, new
    checks fail at once.
    """

    def __init__(self, num_threads: int, on_close: Callable[[], None] = lambda: None) -> None:
        self._num_threads = num_threads
        self._on_close = on_close
        self._turns: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_running = 0
        self._num_lost = 0
        self._watches: set[asyncio.Task[list[Score | SampleError]]] = set()

    async def run(
        self, check: Check, samples: Sequence[Sample], timeout_s: float
    ) -> list[Score | SampleError]:
        """Check samples, each within its time; one outcome a sample, in order."""
        # No more turns at once than threads: so one large request does not keep others waiting.
        slots = asyncio.Semaphore(self._num_threads)
        chunks = [samples[at : at + _CHUNK] for at in range(0, len(samples), _CHUNK)]
        parts = await asyncio.gather(
            *(self._run_checks(check, chunk, timeout_s, slots) for chunk in chunks)
        )
        return [outcome for part in parts for outcome in part]

    def close(self) -> None:
        """Let the threads end; one that hangs ends with the process."""
        with self._lock:
            for _ in range(self._num_running):
                self._turns.put(None)
            self._num_running = 0
        self._on_close()

    async def _run_checks(
        self, check: Check, samples: Sequence[Sample], timeout_s: float, slots: asyncio.Semaphore
    ) -> list[Score | SampleError]:
        outcomes: list[Score | SampleError] = []
        async with slots:
            while len(outcomes) < len(samples):
                outcomes += await self._run_task(_Task(check, samples[len(outcomes) :]), timeout_s)
        return outcomes

    async def _run_task(self, turn: _Task, timeout_s: float) -> list[Score | SampleError]:
        """Have a thread check samples; return the outcomes of the first of them, at least one."""
        if self._num_lost >= _MAX_STUCK:
            message = f"{self._num_lost} checks hang: no more are begun until one returns"
            return [SampleError("model_failed", message) for _ in turn.samples]
        with self._lock:
            while self._num_running < self._num_threads:
                self._start()
        self._turns.put(turn)
        watch = asyncio.create_task(self._watch(turn, timeout_s))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        try:
            # The watch goes on where the caller leaves: its thread may hang all the same.
            return await asyncio.shield(watch)
        finally:
            turn.is_wanted = False

    async def _watch(self, turn: _Task, timeout_s: float) -> list[Score | SampleError]:
        while not turn.finished.done():
            left = turn.since + timeout_s - time.monotonic()
            if left <= 0 and self._abandon(turn):
                message = f"the check took longer than {timeout_s:g} s"
                return [*turn.outcomes, SampleError("model_failed", message)]
            await asyncio.wait((turn.finished,), timeout=max(0.001, min(left, timeout_s)))
        return turn.outcomes

    def _abandon(self, turn: _Task) -> bool:
        with self._lock:
            if turn.is_over:
                return False
            turn.is_abandoned = True
            self._num_lost += 1
            self._num_running -= 1
            self._start()
        return True

    def _start(self) -> None:
        self._num_running += 1
        threading.Thread(target=self._work, name="check", daemon=True).start()

    def _work(self) -> None:
        while (turn := self._turns.get()) is not None:
            turn.run()
            with self._lock:
                turn.is_over = True
                if turn.is_abandoned:  # another thread has this one's place
                    self._num_lost -= 1
                    return
            turn.notify()


@dataclass(eq=False, slots=True)
class _Task:
    """Some samples at one thread; ``since`` is when the one under way began, in monotonic s."""

    check: Check
    samples: Sequence[Sample]
    outcomes: list[Score | SampleError] = field(default_factory=list)
    since: float = math.inf
    is_wanted: bool = True
    is_over: bool = False
    is_abandoned: bool = False
    finished: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def run(self) -> None:
        """Check one sample after another, for as long as anybody wants to know."""
        for sample in self.samples:
            if not self.is_wanted or self.is_abandoned:
                return
            self.since = time.monotonic()
            outcome = _run_check(self.check, sample)
            if self.is_abandoned:
                return
            self.outcomes.append(outcome)

    def notify(self) -> None:
        """Wake the watch."""
        with suppress(RuntimeError):  # a loop that is closed has nobody left to wake
            self.finished.get_loop().call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


def _run_check(check: Check, sample: Sample) -> Score | SampleError:
    try:
        return check(sample)
    except SampleError as error:
        return error.with_traceback(None)
    except BaseException as error:  # a panic in Rust is no Exception; its neighbours go on
        return SampleError("model_failed", f"the check failed: {error!r}"[:500])
