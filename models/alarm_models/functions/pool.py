"""A function's processes, and who asks which."""

from __future__ import annotations

import asyncio
import json
import subprocess
from dataclasses import dataclass

from alarm_models.errors import RecipeError, SampleError
from alarm_models.functions.process import (
    START_S,
    Answer,
    FunctionProcess,
    ProcessDied,
    ProcessHangs,
    command,
)
from alarm_models.sample import Sample

__all__ = ["Function", "FunctionPool"]

#: What an async function has to say that it overran its time itself, before it is killed for it.
_GRACE_S = 1


@dataclass(frozen=True, slots=True)
class Function:
    """A function that was found: ``module:name`` in a folder, and a digest of its file."""

    folder: str
    target: str
    timeout_s: float
    digest: str
    is_async: bool

    @classmethod
    def find(cls, folder: str, target: str, timeout_s: float) -> Function:
        """Import it in a process; raise `RecipeError` where that fails, with what it said."""
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, with a recipe's own names
                command(folder, target, timeout_s),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=START_S,
                check=False,
            )
            found = json.loads(done.stdout.splitlines()[0])
        except subprocess.TimeoutExpired as error:
            raise RecipeError(f"{target} is not imported after {START_S} s") from error
        except (IndexError, ValueError) as error:
            raise RecipeError(f"{target} cannot be imported: its process died") from error
        if "failed" in found:
            raise RecipeError(f"{found['failed']} (imported from {folder!r})")
        return cls(folder, target, timeout_s, found["digest"], found["is_async"])


class FunctionPool:
    """Runs a function in processes, which start as they are needed.

    A plain function has a process for itself while it runs, so a call that hangs or dies is killed
    alone. Calls of an async function share processes; where one dies, each that was open there is
    made again alone, so that only the one that killed it fails.
    """

    def __init__(self, function: Function, num_processes: int, concurrency: int) -> None:
        self._function = function
        self._arguments = command(function.folder, function.target, function.timeout_s)
        self._processes: list[FunctionProcess | None] = [None] * num_processes
        self._starting = [asyncio.Lock() for _ in range(num_processes)]
        self._alone = asyncio.Lock()
        self._asking: set[asyncio.Task[Answer]] = set()
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
            # It goes on where the caller leaves: its process is not free before it has answered.
            return _value(await asyncio.shield(asking))
        except (ProcessDied, ProcessHangs) as error:
            if not self._function.is_async:
                raise self._failed(error) from error
        return await self._call_alone(sample)

    async def close(self) -> None:
        """Kill the processes."""
        for process in self._processes:
            if process is not None:
                await process.close()

    async def _ask_in_slot(self, index: int, sample: Sample) -> Answer:
        try:
            return await self._ask(index, sample)
        finally:
            self._slots.put_nowait(index)

    def _asked(self, asking: asyncio.Task[Answer]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # seen, also where the caller has left

    async def _ask(self, index: int, sample: Sample) -> Answer:
        async with self._starting[index]:
            process = self._processes[index]
            if process is None or not process.is_alive:
                process = await FunctionProcess.start(self._arguments)
                self._processes[index] = process
        return await process.ask(sample, self._timeout_s)

    async def _call_alone(self, sample: Sample) -> object:
        async with self._alone:
            try:
                process = await FunctionProcess.start(self._arguments)
                try:
                    return _value(await process.ask(sample, self._timeout_s))
                finally:
                    await process.close()
            except (ProcessDied, ProcessHangs) as error:
                raise self._failed(error) from error

    @property
    def _timeout_s(self) -> float:
        return self._function.timeout_s + (_GRACE_S if self._function.is_async else 0)

    def _failed(self, error: ProcessDied | ProcessHangs) -> SampleError:
        what = f"took longer than {self._function.timeout_s:g} s"
        if isinstance(error, ProcessDied):
            what = f"ended its process: {error}"
        return SampleError("model_failed", f"{self._function.target} {what}"[:500])


def _value(answer: Answer) -> object:
    if "failed" in answer:
        raise SampleError("model_failed", f"the function failed: {answer['failed']}"[:500])
    return answer["value"]
