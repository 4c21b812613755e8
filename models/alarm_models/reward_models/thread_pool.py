"""A thread pool for text checks with a time limit per sample; hung threads are abandoned.

A thread cannot be killed, so only built-in checks run here, which bound the work per text.
Users' functions run in processes (`process_pool`).
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from alarm_models.cancellation import gather_or_cancel
from alarm_models.errors import SampleError
from alarm_models.types import Sample, Score

__all__ = ["Check", "CheckThreadPool"]

#: Scores one sample, in any thread, or raises `SampleError`.
Check = Callable[[Sample], Score]

#: Samples per task of a thread.
_CHUNK = 16

#: Maximum number of hung threads: a thread cannot be killed and may occupy a core.
_MAX_STUCK = 16


class CheckThreadPool:
    """Runs checks on daemon threads, which start with the first sample.

    A check that raises or exceeds its time limit fails only its sample; the thread of the latter is
    abandoned and replaced. While too many threads hang, new checks fail immediately.
    """

    def __init__(self, num_threads: int, on_close: Callable[[], None] = lambda: None) -> None:
        self._num_threads = num_threads
        self._on_close = on_close
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_running = 0
        self._num_stuck = 0
        self._watches: set[asyncio.Task[list[Score | SampleError]]] = set()

    async def run(
        self, check: Check, samples: Sequence[Sample], timeout_s: float
    ) -> list[Score | SampleError]:
        """Check samples, with a time limit each; one result per sample, in order."""
        # No more tasks at once than threads, so that one large request does not block others.
        slots = asyncio.Semaphore(self._num_threads)
        chunks = [samples[at : at + _CHUNK] for at in range(0, len(samples), _CHUNK)]
        parts = await gather_or_cancel(
            *(self._run_checks(check, chunk, timeout_s, slots) for chunk in chunks)
        )
        return [outcome for part in parts for outcome in part]

    def close(self) -> None:
        """Stop the threads; hung ones end with the process."""
        with self._lock:
            for _ in range(self._num_running):
                self._tasks.put(None)
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

    async def _run_task(self, task: _Task, timeout_s: float) -> list[Score | SampleError]:
        """Check samples on a thread; return the results of the first ones, at least one."""
        if self._num_stuck >= _MAX_STUCK:
            message = f"{self._num_stuck} checks hang: no new check starts until one returns"
            return [SampleError("model_failed", message) for _ in task.samples]
        with self._lock:
            while self._num_running < self._num_threads:
                self._start()
        self._tasks.put(task)
        watch = asyncio.create_task(self._watch(task, timeout_s))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        try:
            # The timeout applies even if the caller is cancelled, as the thread may still hang.
            return await asyncio.shield(watch)
        finally:
            task.has_caller = False

    async def _watch(self, task: _Task, timeout_s: float) -> list[Score | SampleError]:
        while not task.finished.done():
            left = task.since + timeout_s - time.monotonic()
            if left <= 0 and self._abandon(task):
                message = f"the check took longer than {timeout_s:g} s"
                return [*task.outcomes, SampleError("model_failed", message)]
            await asyncio.wait((task.finished,), timeout=max(0.001, min(left, timeout_s)))
        return task.outcomes

    def _abandon(self, task: _Task) -> bool:
        with self._lock:
            if task.is_over:
                return False
            task.is_abandoned = True
            self._num_stuck += 1
            self._num_running -= 1
            self._start()
        return True

    def _start(self) -> None:
        self._num_running += 1
        threading.Thread(target=self._work, name="check", daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task.run()
            with self._lock:
                task.is_over = True
                if task.is_abandoned:  # another thread has replaced this one
                    self._num_stuck -= 1
                    return
            task.notify()


@dataclass(eq=False, slots=True)
class _Task:
    """Samples for one thread; ``since`` is when the running check began, in monotonic seconds."""

    check: Check
    samples: Sequence[Sample]
    outcomes: list[Score | SampleError] = field(default_factory=list)
    since: float = math.inf
    has_caller: bool = True
    is_over: bool = False
    is_abandoned: bool = False
    finished: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def run(self) -> None:
        """Check one sample after another, until the caller is cancelled."""
        for sample in self.samples:
            if not self.has_caller or self.is_abandoned:
                return
            self.since = time.monotonic()
            outcome = _run_check(self.check, sample)
            if self.is_abandoned:
                return
            self.outcomes.append(outcome)

    def notify(self) -> None:
        """Wake the watch."""
        with suppress(RuntimeError):  # the loop is closed
            self.finished.get_loop().call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


def _run_check(check: Check, sample: Sample) -> Score | SampleError:
    try:
        return check(sample)
    except SampleError as error:
        return error.with_traceback(None)
    except BaseException as error:  # a panic in Rust is not an Exception; other samples go on
        return SampleError("model_failed", f"the check failed: {error!r}"[:500])
