"""DeviceWorker: number of CPU threads, and failure isolation: split batches, a watchdog."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import structlog
import torch
from opentelemetry.trace import INVALID_SPAN, Tracer

from alarm_models.cancellation import Cancelled, cancellable
from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import (
    BatchLayout,
    ForwardOutput,
    ModelInput,
    split_sequences,
)
from alarm_models.modeling.network import MODEL_INIT_LOCK
from alarm_models.process_tuning import trim_malloc
from alarm_models.reward_models.base import NeuralRewardModel, RewardModel
from alarm_models.types import Score
from alarm_service.engine.lifecycle import Lifecycle
from alarm_service.engine.model_set import LoadedModel
from alarm_service.engine.scheduler import (
    Companion,
    Outcome,
    QueuedSample,
    RequestQueue,
    TimedOut,
)
from alarm_service.errors import Broken
from alarm_service.observability.metrics import Metrics
from alarm_service.observability.tracing import record_batch

__all__ = ["DeviceWorker", "ThreadChooser", "Watchdog"]


class Watchdog:
    """Watchdog: calls ``on_late`` once, from its own thread, if a block takes too long.

    One block runs at a time. The thread sleeps until the current block would be late, or until the
    next one begins: it wakes about once per ``timeout_s``, regardless of the number of blocks.
    """

    def __init__(self, timeout_s: float, on_late: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_late = on_late
        self._begun: float | None = None
        self._is_idle = False
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Call ``on_late`` if the block runs longer than ``timeout_s``."""
        self._begun = time.monotonic()
        # The thread sets `_is_idle` before it checks whether a block has begun, so that one of the
        # two sees the other's flag.
        if self._is_idle:
            with self._changed:
                self._changed.notify()
        try:
            yield
        finally:
            self._begun = None

    def restart(self) -> None:
        """Give the running block its whole time again, since it has made progress."""
        if self._begun is not None:
            self._begun = time.monotonic()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                begun = self._begun
                if begun is None:
                    self._is_idle = True
                    self._changed.wait_for(lambda: self._is_closed or self._begun is not None)
                    self._is_idle = False
                    continue
                left_s = begun + self._timeout_s - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            else:
                return
        self._on_late()


#: Passes until another number of threads is tried again: at first, and at most.
_FIRST_INTERVAL, _LONGEST_INTERVAL = 16, 256

#: Another number of threads must be faster by this factor.
_LEAST_GAIN = 1.15

#: A pass that takes this many times as long as expected: something else uses the cores.
_SURPRISE = 2.5

#: Passes shorter than this many seconds may be faster with fewer threads even on free cores.
_SHORT_PASS_S = 0.05

#: In longer passes fewer threads can be faster only if all threads together ran for hardly longer
#: than the fewer ones would: by at most this factor, since threads that wait spin for a while.
_MOST_RUNNING = 1.3

#: Longest time in seconds for which fewer threads are tried on a processor with many cores.
_LONGEST_TRIAL_S = 0.5


@dataclass(slots=True)
class _Choice:
    """What is known of one model's passes of one size.

    ``measured`` has the seconds per computed token of the last pass with each number of threads.
    ``last_s`` is the duration of the last pass with ``num_threads``, ``num_running`` the mean
    number of threads that ran in it. ``faster_once`` is a number of threads that was faster than
    ``num_threads`` and will be tried again.
    """

    num_threads: int
    measured: dict[int, float]
    last_s: float = 0.0
    num_passes: int = 0
    interval: int = _FIRST_INTERVAL
    num_running: float = 0.0
    is_surprised: bool = False
    faster_once: int | None = None


class ThreadChooser:
    """Chooses how many threads a forward pass on a CPU uses, by measuring passes.

    Every operation waits for its slowest thread. While another process keeps a core busy, or where
    a pass is small, one thread is faster than all of them. Each model and size of pass (in powers
    of two) starts with all threads. If passes are short or their threads waited for a core, fewer
    are tried in the second pass, then at growing intervals, and after each pass that took much
    longer than expected. Another number is chosen if it is faster twice, with a pass of the current
    number in between, so that one disturbed pass decides nothing. With ``is_fixed``, all threads
    are used: the number may change a score's last bits.
    """

    def __init__(self, num_threads: int, *, is_fixed: bool = False) -> None:
        few = {1, 4} if num_threads > 8 else {1}
        self._numbers = [num_threads] if is_fixed else sorted({*few, num_threads}, reverse=True)
        self._choices: dict[tuple[str, int], _Choice] = {}

    def choose(self, model: str, num_tokens: int) -> int:
        """Return the number of threads for a pass of samples with that many tokens."""
        if len(self._numbers) == 1:
            return self._numbers[0]
        choice = self._choice(model, num_tokens)
        choice.num_passes += 1
        if not choice.measured or not self._is_due(choice):
            return choice.num_threads
        others = [one for one in self._numbers if one != choice.num_threads]
        other = choice.faster_once or min(
            others, key=lambda one: (one in choice.measured, choice.measured.get(one, 0))
        )
        # On many cores a long pass would hold up its callers for too long.
        slowdown = choice.num_threads / other
        longest_s = choice.last_s * slowdown
        return other if slowdown <= 4 or longest_s <= _LONGEST_TRIAL_S else choice.num_threads

    def record(
        self,
        model: str,
        num_tokens: int,
        num_computed: int,
        num_threads: int,
        seconds: float,
        cpu_seconds: float,
    ) -> None:
        """Record the duration of a pass, and the CPU time of all threads of the process in it.

        Passes are compared by the tokens that they computed: those of a shared prefix once, those
        of a cached one never.
        """
        if len(self._numbers) == 1:
            return
        choice = self._choice(model, num_tokens)
        took = seconds / max(num_computed, 1)
        before = choice.measured.get(num_threads)
        choice.measured[num_threads] = took
        if num_threads == choice.num_threads:
            choice.last_s = seconds
            choice.num_running = cpu_seconds / max(seconds, 1e-9)
            choice.is_surprised = before is not None and took > _SURPRISE * before
            if choice.faster_once and not self._is_faster(choice, choice.faster_once):
                choice.faster_once = None
            return
        choice.num_passes, choice.is_surprised = 0, False
        if not self._is_faster(choice, num_threads):
            choice.interval = min(2 * choice.interval, _LONGEST_INTERVAL)
            choice.faster_once = None
        elif choice.faster_once is None:
            choice.faster_once = num_threads
        else:
            choice.num_threads, choice.interval = num_threads, _FIRST_INTERVAL
            choice.faster_once = None

    @staticmethod
    def _is_faster(choice: _Choice, num_threads: int) -> bool:
        """Whether the last pass with this number of threads was faster than with the current."""
        return choice.measured[num_threads] * _LEAST_GAIN < choice.measured[choice.num_threads]

    def _choice(self, model: str, num_tokens: int) -> _Choice:
        key = (model, num_tokens.bit_length())
        return self._choices.setdefault(key, _Choice(self._numbers[0], {}))

    def _is_due(self, choice: _Choice) -> bool:
        """Whether the next pass should try another number of threads."""
        if choice.faster_once:
            return choice.num_passes > 1
        may_gain = (
            choice.num_threads != self._numbers[0]
            or choice.last_s < _SHORT_PASS_S
            or choice.num_running < _MOST_RUNNING * self._numbers[1]
        )
        is_first = len(choice.measured) == 1
        is_time = is_first or choice.is_surprised or choice.num_passes > choice.interval
        return may_gain and is_time


_log = structlog.get_logger()

#: Maximum number of abandoned forward passes still running on a CPU, since they use its time.
_MAX_GIVEN_UP = 4

#: Seconds that a forward pass may run on a CPU before a second thread serves other models.
_RELIEF_S = 5.0


#: A batch is unusually large if it has this many times the tokens of recent ones, and at least so
#: many. The mean of recent ones follows each by this part.
_TIMES_USUAL, _MIN_LARGE_TOKENS, _PART_OF_MEAN = 2.0, 2048, 0.125

#: Seconds after which the memory of an unusually large batch is given back.
_TRIM_DELAY_S = 60.0


class DelayedTrim:
    """Gives free memory back to the system a minute after an unusually large batch.

    Afterwards, batches fault their pages in anew, which costs up to a third of a pass. Therefore it
    is done at most once a minute, and not if such batches have become usual, as after the first
    ones of a server.
    """

    def __init__(self, delay_s: float = _TRIM_DELAY_S) -> None:
        self._delay_s = delay_s
        self._mean = 0.0
        self._largest = 0
        self._timer: threading.Timer | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def record(self, num_tokens: int) -> None:
        """Note the tokens of a batch that ended."""
        with self._lock:
            is_large = self._is_large(num_tokens)
            self._mean += _PART_OF_MEAN * (num_tokens - self._mean)
            if is_large:
                self._largest = max(self._largest, num_tokens)
            if is_large and self._timer is None and not self._is_closed:
                self._timer = threading.Timer(self._delay_s, self._trim)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Give nothing back from now on."""
        with self._lock:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _trim(self) -> None:
        with self._lock:
            self._timer = None
            is_usual = not self._is_large(self._largest)
            self._largest = 0
        if not is_usual:
            trim_malloc()

    def _is_large(self, num_tokens: int) -> bool:
        return num_tokens > max(_TIMES_USUAL * self._mean, _MIN_LARGE_TOKENS)


@runtime_checkable
class _HasPrefixCache(Protocol):
    def clear_prefix_cache(self) -> None:
        """Clear the prefix cache."""


class DeviceWorker:
    """Runs batches on one device, using the replica with that ``index`` of each model.

    A batch that raises is split in half and retried, down to single samples, so that a sample only
    fails if it fails alone. A sample that kills the thread, or whose forward pass takes longer than
    ``forward_timeout_s`` (0: no limit), is not retried; the rest of its batch is run again, one
    sample at a time. On a CPU (``is_cpu``) a new thread takes over, since a hung thread cannot be
    killed. A GPU on which a pass hangs is no longer used: all samples of its batch fail, and
    ``on_lost`` returns whether other devices continue.
    """

    def __init__(
        self,
        index: int,
        queue: RequestQueue,
        metrics: Metrics,
        life: Lifecycle,
        tracer: Tracer,
        *,
        forward_timeout_s: float,
        is_cpu: bool = True,
        is_deterministic: bool = False,
        on_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self.index = index
        self.queue = queue
        self.metrics = metrics
        self.life = life
        self.tracer = tracer
        self.forward_timeout_s = forward_timeout_s
        #: Whether the device is no longer used, after a hung forward pass or a device failure.
        self.is_lost = False
        self._has_failed = False
        self.is_cpu = is_cpu
        self.trim = DelayedTrim()
        self._num_threads = torch.get_num_threads()
        self._threads = ThreadChooser(self._num_threads, is_fixed=is_deterministic or not is_cpu)
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._is_closed = False

    def start(self) -> None:
        """Start taking batches."""
        self._start_worker()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to finish after their queue is closed, except for hung ones."""
        self.trim.close()
        with self._lock:
            self._is_closed = True
            workers = list(self._workers)
        deadline = time.monotonic() + timeout_s
        for worker in workers:
            worker.join(0.0 if worker.is_given_up else max(0.0, deadline - time.monotonic()))

    def is_running(self) -> bool:
        """Whether a thread is still running; Python must not be finalized meanwhile."""
        with self._lock:
            return any(worker.is_alive() for worker in self._workers)

    def num_given_up(self) -> int:
        """Return the number of abandoned forward passes that are still running."""
        with self._lock:
            return sum(worker.is_given_up and worker.is_alive() for worker in self._workers)

    def is_busy(self, model: LoadedModel) -> bool:
        """Whether a thread is in a long forward pass beside which a model must not run."""
        with self._lock:
            workers = list(self._workers)
        return any(worker.blocks(model) for worker in workers)

    @contextmanager
    def threads_for(
        self, model: str, works: Sequence[QueuedSample]
    ) -> Iterator[Callable[[int], None]]:
        """Run a forward pass in the block with the number of threads that is fastest for it.

        The block calls what it is given, at its end, with the number of tokens that were computed.
        """
        num_tokens = sum(work.features.num_cost_tokens for work in works)
        num_threads = self._threads.choose(model, num_tokens)
        if num_threads != self._num_threads:
            torch.set_num_threads(num_threads)
        # The time of the process includes its other threads, tokenization and HTTP: while they run,
        # waiting for a core is noticed less often.
        started, cpu_started = time.monotonic(), time.process_time()

        def record(num_computed: int) -> None:
            seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
            self._threads.record(model, num_tokens, num_computed, num_threads, seconds, cpu_seconds)

        try:
            yield record
        finally:
            if num_threads != self._num_threads:
                # Threads that are started now would inherit it.
                torch.set_num_threads(self._num_threads)

    def relieve(self, worker: _Worker) -> None:
        """Start another thread for the other models while a long forward pass runs on a CPU."""
        with self._lock:
            is_relieved = any(one.is_relieved() for one in self._workers)
        if self.is_cpu and not is_relieved and worker.retire():
            self._start_worker()

    def on_forward_timeout(self, worker: _Worker) -> None:
        """Abandon a worker whose forward pass timed out."""
        model, suspects, others = worker.give_up()
        if not suspects:  # it has just finished
            self._start_worker()
            return
        message = (
            f"a forward pass of {model} takes longer than {self.forward_timeout_s:g} s "
            "(--forward-timeout-s)"
        )
        MODEL_INIT_LOCK.give_up(worker.ident)
        self._clear_prefix_cache(suspects[0])
        self.metrics.pass_given_up(model)
        self._charge(suspects, self.forward_timeout_s)
        # The pass goes on in its thread: what it changes would make others' scores wrong.
        is_exclusive = suspects[0].model.stateful is not None
        can_go_on = self.is_cpu and not is_exclusive and self.num_given_up() <= _MAX_GIVEN_UP
        self._isolate(suspects, others, message, can_retry=can_go_on)
        if can_go_on:
            _log.error("forward pass timed out", model=model, num_samples=len(suspects))
            self.life.degraded[worker] = message
            if not worker.was_relieved:
                self._start_worker()
        else:
            self._fail_device(f"{message}: restart the server")

    def on_worker_died(self, worker: _Worker, death: BaseException) -> None:
        """Start another worker after one died; if the device failed, it is lost."""
        model, suspects, others = worker.give_up()
        message = f"the thread that owns the device died: {death!r}"
        self._has_failed = isinstance(death, torch.AcceleratorError)
        can_go_on = not self._has_failed
        self._isolate(suspects, others, message, can_retry=can_go_on)
        if can_go_on:
            _log.error("device thread died", model=model, error=message)
            if not worker.was_relieved:
                self._start_worker()
        else:
            self._fail_device(message)

    def on_worker_returned(self, worker: _Worker) -> None:
        """Handle an abandoned worker that has returned after all."""
        self.life.degraded.pop(worker, None)
        if self.is_lost and not self._has_failed and self.life.device_error is None:
            self.is_lost = False
            self.life.degraded.pop(self, None)
            self._start_worker()

    def _start_worker(self) -> None:
        with self._lock:
            self._workers = [worker for worker in self._workers if worker.is_alive()]
            if self._is_closed:
                return
            worker = _Worker(self)
            self._workers.append(worker)
            worker.start()

    def _isolate(
        self,
        suspects: Sequence[QueuedSample],
        others: Sequence[QueuedSample],
        message: str,
        *,
        can_retry: bool,
    ) -> None:
        """Fail the sample that caused it, if known; run the rest of its batch one by one."""
        again = list(others)
        if len(suspects) > 1 and can_retry:
            again += [replace(work, cost=BatchLayout.SINGLE, charged=0.0) for work in suspects]
        else:
            among = "" if len(suspects) == 1 else f"; it was one of {len(suspects)} in its batch"
            for work in suspects:
                if len(suspects) == 1:
                    self.queue.timed_out.add(work)
                self.metrics.sample_timed_out(work.model.name)
                work.deliver(
                    TimedOut("model_failed", f"{message}{among}: do not send this sample again")
                )
        self.queue.put(again)

    def _fail_device(self, message: str) -> None:
        """Continue with the other devices, or fail all requests if there is none."""
        self.is_lost = True
        if self._on_lost():
            _log.error("device lost", error=message)
            self.life.degraded[self] = message
            return
        reason = Broken(message, retry_after_s=5)
        self.life.device_error = reason
        _log.critical("device lost", error=message)
        self.queue.close(reason)

    def _charge(self, works: Sequence[QueuedSample], seconds: float) -> None:
        self.queue.record_batch(works, [work.features.num_cost_tokens for work in works], seconds)

    def _clear_prefix_cache(self, work: QueuedSample) -> None:
        """Replace the prefix cache: the abandoned pass may still insert into the old one."""
        model = work.model.replica(self.index)
        if isinstance(model, _HasPrefixCache):
            model.clear_prefix_cache()


@dataclass(eq=False)
class _Part:
    """The samples of the running forward pass, and the parts of its batch still to run."""

    running: list[QueuedSample]
    pending: list[list[QueuedSample]]


class _Worker:
    """A thread that runs batches until its queue is closed or it is abandoned."""

    def __init__(self, device: DeviceWorker) -> None:
        self._device = device
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._lock = threading.Lock()
        self._part = _Part([], [])
        self.is_given_up = False
        self.was_relieved = False
        self._watchdogs = []
        self._timeout: Watchdog | None = None
        if device.forward_timeout_s:
            self._timeout = Watchdog(
                device.forward_timeout_s, lambda: device.on_forward_timeout(self)
            )
            self._watchdogs.append(self._timeout)
        if not device.forward_timeout_s or device.forward_timeout_s > _RELIEF_S:
            self._watchdogs.append(Watchdog(_RELIEF_S, lambda: device.relieve(self)))

    @property
    def ident(self) -> int:
        """The thread's identifier."""
        return self._thread.ident or 0

    def start(self) -> None:
        """Start taking batches."""
        self._thread.start()
        for watchdog in self._watchdogs:
            watchdog.start()

    def is_alive(self) -> bool:
        """Return whether the thread is running."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to finish."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        for watchdog in self._watchdogs:
            watchdog.close()

    def retire(self) -> bool:
        """Take no further batch; return whether one is still running."""
        with self._lock:
            self.was_relieved = bool(self._part.running) and not self.is_given_up
            return self.was_relieved

    def is_relieved(self) -> bool:
        """Whether it is running its last batch, whose outcome is still delivered."""
        with self._lock:
            return self.was_relieved and not self.is_given_up and bool(self._part.running)

    def blocks(self, model: LoadedModel) -> bool:
        """Whether a model must not run beside the running long pass.

        That is so for the same model, and for models whose passes change what they share: both
        would compute wrong scores.
        """
        if not self.is_relieved():
            return False
        running = self._part.running
        if not running:  # it has just ended
            return False
        own = running[0].model
        return own.name == model.name or (
            own.stateful is not None and own.stateful == model.stateful
        )

    def give_up(self) -> tuple[str, list[QueuedSample], list[QueuedSample]]:
        """Abandon the running pass; return its model, its samples, and those still to run."""
        with self._lock:
            self.is_given_up = True
            part, self._part = self._part, _Part([], [])
        others = [work for works in part.pending for work in works]
        model = part.running[0].model.name if part.running else ""
        return model, part.running, others

    def _run(self) -> None:
        device = self._device
        try:
            while not self._is_done():
                batch = device.queue.take(device.is_busy)
                if batch is None:
                    break
                if self._is_done():  # abandoned as its last batch ended: another thread runs
                    device.queue.put(batch)
                    break
                num_tokens = sum(work.features.num_tokens for work in batch)
                with device.metrics.on_device():
                    self._run_batch(batch)
                del batch  # so that models can be released
                if device.is_cpu:
                    device.trim.record(num_tokens)
        except BaseException as death:  # requests must not hang, whatever kills this thread
            if not self.is_given_up:
                device.on_worker_died(self, death)
        finally:
            for watchdog in self._watchdogs:
                watchdog.close()
            if self.is_given_up:
                device.on_worker_returned(self)
            elif self.was_relieved:
                device.queue.wake()

    def _is_done(self) -> bool:
        with self._lock:
            return self.is_given_up or self.was_relieved

    def _run_batch(self, batch: list[QueuedSample]) -> None:
        device, name = self._device, batch[0].model.name
        model = batch[0].model.replica(device.index)
        started = time.monotonic()
        device.metrics.batch_taken(name, batch, started)
        computed = {id(work): work.features.num_cost_tokens for work in batch}
        pending = [batch]
        while pending:
            part = pending.pop()
            with self._lock:
                self._part = _Part(part, pending)
            try:
                outcomes, others = self._scored(name, model, part)
            except torch.AcceleratorError:
                raise  # the device is lost
            except Cancelled:
                if self.is_given_up:
                    return
                continue  # nobody waits for these samples
            except Exception as error:  # a model may raise anything; other batches continue
                if self.is_given_up:
                    return
                _release_failed_batch(error)
                device.metrics.batch_failed(name)
                _log.warning(
                    "forward failed", model=name, num_samples=len(part), error=repr(error)[:500]
                )
                if len(part) > 1:
                    middle = len(part) // 2
                    pending += [part[middle:], part[:middle]]
                    continue
                if part[0].companions:  # the head of another model may have failed
                    pending.append([replace(part[0], companions=())])
                    continue
                if part[0].features.further_sequences and not part[0].runs_apart:
                    pending.append([replace(part[0], runs_apart=True)])
                    continue
                others = []
                outcomes = [SampleError("model_failed", f"the model failed: {error!r}"[:500])]
            if self.is_given_up:
                return
            for companion, other in others:
                companion.deliver(other)
            for work, outcome in zip(part, outcomes, strict=True):
                if isinstance(outcome, Score):
                    computed[id(work)] = outcome.num_computed_tokens
                work.deliver(outcome)
        with self._lock:
            if self.is_given_up:
                return
            self._part = _Part([], [])
        ended = time.monotonic()
        if any(work.span is not INVALID_SPAN for work in batch):
            record_batch(device.tracer, batch, started, ended)
        num_tokens = sum(work.features.num_tokens for work in batch)
        device.metrics.batch_done(name, num_tokens)
        device.queue.record_batch(batch, [computed[id(work)] for work in batch], ended - started)

    def _scored(
        self, name: str, model: RewardModel, works: Sequence[QueuedSample]
    ) -> tuple[Sequence[Outcome], Sequence[tuple[Companion, Score | SampleError]]]:
        """Run samples; return the model's outcomes, and those of other models that share the pass.

        Metrics count the pass for this model only, since its tokens were computed once.
        """
        with ExitStack() as watching:
            watching.enter_context(self._device.metrics.forwarding(name))
            for watchdog in self._watchdogs:
                watching.enter_context(watchdog.watch())
            watching.enter_context(cancellable(lambda: self._may_stop_generating(works)))
            with self._device.threads_for(name, works) as record:
                output, shared = _forward(model, works, self._device.index)
                record(sum(output.num_computed))
        if len(output) != len(works):
            raise RuntimeError(f"{len(output)} outputs for {len(works)} samples")
        with self._device.metrics.reading(name):
            outcomes = [
                _read(model, work.features, rows, num_computed)
                for work, rows, num_computed in zip(works, output, output.num_computed, strict=True)
            ]
            return outcomes, [
                (one, _read(one.model.replica(self._device.index), one.features, rows, 0))
                for one, rows in shared
            ]

    def _may_stop_generating(self, works: Sequence[QueuedSample]) -> bool:
        """Say whether a model that generates text may stop; it asks before each token.

        The time limit of a forward pass is that of one token.
        """
        if self._timeout is not None:
            self._timeout.restart()
        return self.is_given_up or not any(work.is_active() for work in works)


def _forward(
    model: RewardModel, works: Sequence[QueuedSample], device: int
) -> tuple[ForwardOutput, list[tuple[Companion, torch.Tensor]]]:
    """Run samples; return the model's rows of outputs, and those of each companion."""
    features = [work.features for work in works]
    if works[0].runs_apart:
        return _forward_apart(model, features), []
    companions = [{one.model: one for one in work.companions} for work in works]
    models = list(dict.fromkeys(other for one in companions for other in one))
    if not models:
        return model.forward(features), []
    others = [
        (
            _neural(loaded.replica(device)),
            [one[loaded].features if loaded in one else None for one in companions],
        )
        for loaded in models
    ]
    output, rows = _neural(model).forward_shared(features, others)
    shared = [
        (companions[index][loaded], own)
        for loaded, of_model in zip(models, rows, strict=True)
        for index, own in enumerate(of_model)
        if own is not None
    ]
    return output, shared


def _forward_apart(model: RewardModel, batch: Sequence[ModelInput]) -> ForwardOutput:
    """Run each token sequence in a pass of its own, where all of them need too much memory."""
    rows, num_computed = [], []
    for features in batch:
        outputs = [model.forward([one]) for one in split_sequences([features])]
        rows.append(torch.cat([output[0] for output in outputs]))
        num_computed.append(sum(output.num_computed[0] for output in outputs))
    return ForwardOutput(rows, num_computed)


def _neural(model: RewardModel) -> NeuralRewardModel:
    if not isinstance(model, NeuralRewardModel):
        raise TypeError("only models with weights share a forward pass")
    return model


def _read(
    model: RewardModel, features: ModelInput, rows: torch.Tensor, num_computed: int
) -> Score | SampleError:
    try:
        return replace(model.read(features, rows), num_computed_tokens=num_computed)
    except SampleError as error:
        return error


def _release_failed_batch(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
        torch.cuda.empty_cache()
