"""A pool of worker processes that run users' functions and are killed at the time limit.

Unlike a built-in check (`thread_pool`), a user's function may loop forever, fork or crash.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alarm_models.errors import RecipeError, SampleError
from alarm_models.reward_models import process_guard as guard
from alarm_models.sample_json import sample_to_json
from alarm_models.types import Sample

__all__ = [
    "START_S",
    "Function",
    "FunctionPool",
    "FunctionProcess",
    "FunctionResult",
    "ProcessDied",
    "ProcessTimeout",
    "Program",
    "without_secrets",
]

#: Words in the names of variables whose values are secrets.
_SECRET = re.compile(
    r"(^|_)(\w*(KEY|KEYS|APIKEY|TOKEN|SECRET|SECRETS|PASSWORD)|KEYS?|TOKENS?|PASSWD|PASSPHRASE"
    r"|CREDENTIALS?|AUTH|PAT)(_|$)",
    re.IGNORECASE,
)

#: May contain API keys of remote models (``models.NAME.api_key=...``).
_SETTINGS = frozenset({"ALARM_SET"})


def without_secrets(passed: Collection[str] = ()) -> Mapping[str, str]:
    """Return the environment of this process without secrets, except variables in ``passed``."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in passed or not (_SECRET.search(name) or name.upper() in _SETTINGS)
    }


#: A line of the worker's output: an ``id``, and a ``value`` or the error in ``failed``.
FunctionResult = Mapping[str, Any]

#: The longest line in bytes: a completion, or its spans.
_MAX_LINE = 1 << 26

#: Time limit for importing the function, in seconds.
START_S = 120

#: Time limit for the guard to end the process tree; longer than the guard's own limit.
_END_S = 7


class ProcessDied(Exception):
    """The process ended during this call; other calls may have been in flight too."""


class ProcessTimeout(Exception):
    """The call timed out; the process has been killed."""


@dataclass(frozen=True, slots=True)
class Program:
    """The function that a worker process runs: ``module:name`` in a folder.

    ``variables`` are passed on although their names look like secrets.
    """

    folder: str
    target: str
    timeout_s: float
    variables: Collection[str] = ()

    def start(self) -> Guarded:
        """Start it; raise `OSError`."""
        program = "alarm_models.reward_models.process_worker"
        lifeline, our_end = os.pipe()
        try:
            process = subprocess.Popen(  # noqa: S603 - this interpreter, with a recipe's own names
                [sys.executable, "-I", "-S", str(Path(guard.__file__).resolve()), str(lifeline),
                 sys.executable, "-m", program, self.folder, self.target, str(self.timeout_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=without_secrets(self.variables),
                pass_fds=[lifeline],
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(our_end)
            raise
        finally:
            os.close(lifeline)
        return Guarded(process, our_end)


class Guarded:
    """A worker process under its guard, which kills the process tree after `hang_up`."""

    def __init__(self, process: subprocess.Popen[bytes], lifeline: int) -> None:
        self.process = process
        self._lifeline: int | None = lifeline

    def hang_up(self) -> None:
        """Have the guard kill the process tree; does not wait."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None

    def first_line(self, timeout_s: float) -> bytes:
        """Return the only line that it writes before requests; raise `TimeoutError`."""
        if self.process.stdout is None:
            return b""
        line, deadline = b"", time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                read = os.read(self.process.stdout.fileno(), 1 << 16)
                if not read:
                    break
                line += read
        return line

    def wait(self) -> None:
        """Wait until the guard has ended; kill it after the time limit."""
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        """Kill it; only if its pipes are not read elsewhere."""
        self.hang_up()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.wait()


class FunctionProcess:
    """A running worker process; calls may be concurrent."""

    def __init__(self, guarded: Guarded, pipes: _Pipes) -> None:
        self._guarded = guarded
        self._pipes = pipes
        self._ids = itertools.count()
        self._open: dict[int, asyncio.Future[FunctionResult]] = {}
        #: Whether it accepts no more calls, and whether it has ended.
        self._is_retired = self._is_over = False
        self._closing: asyncio.Task[None] | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, program: Program) -> FunctionProcess:
        """Start a process and wait until it has imported its function; raise `ProcessDied`."""
        try:
            guarded = program.start()
        except OSError as error:
            raise ProcessDied(f"it did not start: {error}") from error
        pipes = await _Pipes.of(guarded.process)
        first = b""
        try:
            with suppress(TimeoutError, ValueError):
                first = await asyncio.wait_for(pipes.answers.readline(), START_S)
            found: FunctionResult = json.loads(first) if first else {"failed": "it did not start"}
        except BaseException:  # the caller was cancelled
            await cls(guarded, pipes).close()
            raise
        started = cls(guarded, pipes)
        if "failed" in found:
            await started.close()
            raise ProcessDied(found["failed"])
        return started

    @property
    def is_usable(self) -> bool:
        """Whether it accepts calls."""
        return not self._is_retired and not self._is_over

    @property
    def is_closed(self) -> bool:
        """Whether it has ended and its pipes are closed."""
        return self._reader.done()

    async def ask(self, sample: Sample, timeout_s: float) -> FunctionResult:
        """Return the function's result; raise `ProcessDied` or `ProcessTimeout`."""
        number = next(self._ids)
        answer: asyncio.Future[FunctionResult] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                with suppress(ConnectionError):  # the reader sees that it ended, and reports it
                    self._pipes.questions.write(_request_line(number, sample))
                    await self._pipes.questions.drain()
                if self._is_over:
                    raise ProcessDied("the process ended")
                return await answer
        except TimeoutError:
            await self.close()
            raise ProcessTimeout from None
        finally:
            del self._open[number]
            if self._is_retired and not self._open:
                self._close_soon()

    async def close(self) -> None:
        """Kill its process tree; calls in flight fail with `ProcessDied`."""
        self._guarded.hang_up()
        # The pipe closes with the last process that has it open; the guard ends them all.
        _, left = await asyncio.wait([self._reader], timeout=_END_S)
        if left:
            self._reader.cancel()
            await asyncio.wait(left)

    def _close_soon(self) -> None:
        self._guarded.hang_up()
        if self._closing is None:
            self._closing = asyncio.create_task(self.close())

    async def _read(self) -> None:
        try:
            # A line that is too long or not JSON ends the process.
            with suppress(ValueError, LookupError, TypeError, AttributeError):
                while line := await self._pipes.answers.readline():
                    self._take(json.loads(line))
        finally:
            self._is_over = True
            self._guarded.hang_up()
            self._pipes.close()
            for future in self._open.values():
                if not future.done():
                    future.set_exception(ProcessDied("the process ended"))
        await asyncio.to_thread(self._guarded.wait)

    def _take(self, answer: FunctionResult) -> None:
        # Processes started by an abandoned call can only be ended with the worker.
        self._is_retired = self._is_retired or bool(answer.get("leaves_processes"))
        future = self._open.get(answer["id"])
        if future is not None and not future.done():
            future.set_result(answer)


@dataclass(frozen=True, slots=True)
class _Pipes:
    """A process's output and input, read and written by the event loop."""

    answers: asyncio.StreamReader
    questions: asyncio.StreamWriter
    transport: asyncio.ReadTransport

    @classmethod
    async def of(cls, process: subprocess.Popen[bytes]) -> _Pipes:
        """Take ownership of a process's pipes."""
        loop = asyncio.get_running_loop()
        answers = asyncio.StreamReader(limit=_MAX_LINE)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), process.stdout
        )
        # StreamWriter requires a protocol with flow control; this one reads nothing.
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        writing, _ = await loop.connect_write_pipe(lambda: protocol, process.stdin)
        return cls(answers, asyncio.StreamWriter(writing, protocol, None, loop), reading)

    def close(self) -> None:
        """Close both without flushing."""
        self.transport.close()
        if not self.questions.transport.is_closing():
            self.questions.transport.abort()


def _request_line(number: int, sample: Sample) -> bytes:
    return json.dumps({"id": number, "sample": sample_to_json(sample)}).encode() + b"\n"


#: Time for an async function to report its own timeout before it is killed, in seconds.
_GRACE_S = 1


@dataclass(frozen=True, slots=True)
class Function:
    """An imported function: its program, and a digest of its file."""

    program: Program
    digest: str
    is_async: bool

    @classmethod
    def find(
        cls, folder: str, target: str, timeout_s: float, variables: Collection[str] = ()
    ) -> Function:
        """Import it in a process; raise `RecipeError` with its error if that fails.

        ``variables`` are passed on although their names look like secrets.
        """
        program = Program(folder, target, timeout_s, variables)
        try:
            guarded = program.start()
        except OSError as error:
            raise RecipeError(f"{target} cannot be imported: {error}") from error
        try:
            found = json.loads(guarded.first_line(START_S))
        except TimeoutError as error:
            raise RecipeError(f"{target} is not imported after {START_S} s") from error
        except ValueError as error:
            raise RecipeError(f"{target} cannot be imported: its process died") from error
        finally:
            guarded.close()
        if "failed" in found:
            raise RecipeError(f"{found['failed']} (imported from {folder!r})")
        return cls(program, found["digest"], found["is_async"])


class FunctionPool:
    """Runs a function in processes, which start on demand.

    A call of a plain function has a process to itself, so a call that hangs or dies affects no
    other. Calls of an async function share processes; if a process dies, its calls in flight are
    repeated one by one, so that only the one that killed it fails.
    """

    def __init__(self, function: Function, num_processes: int, concurrency: int) -> None:
        self._function = function
        self._program = function.program
        self._is_closed = False
        self._processes: list[FunctionProcess | None] = [None] * num_processes
        #: Processes that accept no more calls but may have calls in flight.
        self._leaving: list[FunctionProcess] = []
        self._starting = [asyncio.Lock() for _ in range(num_processes)]
        self._alone = asyncio.Lock()
        self._asking: set[asyncio.Task[FunctionResult]] = set()
        self._slots: asyncio.Queue[int] = asyncio.Queue()
        for _ in range(concurrency if function.is_async else 1):
            for index in range(num_processes):
                self._slots.put_nowait(index)

    async def call(self, sample: Sample) -> object:
        """Return what the function returns; raise `SampleError` (``model_failed``)."""
        index = await self._slots.get()
        asking = asyncio.create_task(self._ask_in_slot(index, sample))
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        try:
            # It continues if the caller leaves: its process is busy until it has answered.
            return _result_value(await asyncio.shield(asking))
        except asyncio.CancelledError:
            if asking.cancelled():  # the pool was closed; the caller was not cancelled
                raise SampleError("model_failed", f"{self._program.target} was closed") from None
            raise
        except (ProcessDied, ProcessTimeout) as error:
            if not self._function.is_async:
                raise self._failed(error) from error
        return await self._call_alone(sample)

    async def close(self) -> None:
        """Kill the processes, also those that are starting."""
        self._is_closed = True
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        running = [process for process in self._processes if process is not None]
        await asyncio.gather(*(process.close() for process in running + self._leaving))

    async def _ask_in_slot(self, index: int, sample: Sample) -> FunctionResult:
        try:
            return await self._ask(index, sample)
        finally:
            self._slots.put_nowait(index)

    def _asked(self, asking: asyncio.Task[FunctionResult]) -> None:
        self._asking.discard(asking)
        with suppress(asyncio.CancelledError):
            asking.exception()  # mark as retrieved, even if the caller was cancelled

    async def _ask(self, index: int, sample: Sample) -> FunctionResult:
        async with self._starting[index]:
            process = self._processes[index]
            if process is None or not process.is_usable:
                self._leaving = [one for one in self._leaving if not one.is_closed]
                self._leaving += [] if process is None else [process]
                self._processes[index] = None
                process = self._processes[index] = await self._start()
        return await process.ask(sample, self._timeout_s)

    async def _start(self) -> FunctionProcess:
        if self._is_closed:
            raise ProcessDied("it is closed")
        return await FunctionProcess.start(self._program)

    async def _call_alone(self, sample: Sample) -> object:
        async with self._alone:
            try:
                process = await self._start()
                try:
                    return _result_value(await process.ask(sample, self._timeout_s))
                finally:
                    await process.close()
            except (ProcessDied, ProcessTimeout) as error:
                raise self._failed(error) from error

    @property
    def _timeout_s(self) -> float:
        return self._program.timeout_s + (_GRACE_S if self._function.is_async else 0)

    def _failed(self, error: ProcessDied | ProcessTimeout) -> SampleError:
        what = f"took longer than {self._program.timeout_s:g} s"
        if isinstance(error, ProcessDied):
            what = f"ended its process: {error}"
        return SampleError("model_failed", f"{self._program.target} {what}"[:500])


def _result_value(answer: FunctionResult) -> object:
    if "failed" in answer:
        raise SampleError("model_failed", f"the function failed: {answer['failed']}"[:500])
    return answer["value"]
