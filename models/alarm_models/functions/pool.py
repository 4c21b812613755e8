"""A function's processes, and who asks which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from alarm_models.errors import RecipeError, SampleError
from alarm_models.functions.process import (
    START_S,
    Answer,
    FunctionProcess,
    ProcessDied,
    ProcessHangs,
    Program,
)
from alarm_models.sample import Sample

__all__ = ["Function", "FunctionPool"]

#: What an async function has to say that it overran its time itself, before it is killed for it.
_GRACE_S = 1


@dataclass(frozen=True, slots=True)
class Function:
    """A function that was found: what runs it, and a digest of its file."""

    program: Program
    digest: str
    is_async: bool

    @classmethod
    def find(
        cls, folder: str, target: str, timeout_s: float, variables: Collection[str] = ()
    ) -> Function:
        """Import it in a process; raise `RecipeError` where that fails, with what it said.

        ``variables`` are those of the environment that it is given although they hold secrets.
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
    """Runs a function in processes, which start as they are needed.

    A plain function has a process for itself while it runs, so a call that hangs or dies is killed
    alone. Calls of an async function share processes; where one dies, each that was open there is
    made again alone, so that only the one that killed it fails.
    """

    def __init__(self, function: Function, num_processes: int, concurrency: int) -> None:
        self._function = function
        self._program = function.program
        self._is_closed = False
        self._processes: list[FunctionProcess | None] = [None] * num_processes
        #: Those that are asked nothing any more, and may not have answered all.
        self._leaving: list[FunctionProcess] = []
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
        except asyncio.CancelledError:
            if asking.cancelled():  # the pool was closed, rather than the caller gone
                raise SampleError("model_failed", f"{self._program.target} was closed") from None
            raise
        except (ProcessDied, ProcessHangs) as error:
            if not self._function.is_async:
                raise self._failed(error) from error
        return await self._call_alone(sample)

    async def close(self) -> None:
        """Kill the processes, those too that are being started."""
        self._is_closed = True
        for asking in self._asking:
            asking.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        running = [process for process in self._processes if process is not None]
        await asyncio.gather(*(process.close() for process in running + self._leaving))

    async def _ask_in_slot(self, index: int, sample: Sample) -> Answer:
        try:
            return await self._ask(index, sample)
        finally:
            self._slots.put_nowait(index)

    def _asked(self, asking: asyncio.Task[Answer]) -> None:
        self._asking.discard(asking)
        with suppress(asyncio.CancelledError):
            asking.exception()  # seen, also where the caller has left

    async def _ask(self, index: int, sample: Sample) -> Answer:
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
                    return _value(await process.ask(sample, self._timeout_s))
                finally:
                    await process.close()
            except (ProcessDied, ProcessHangs) as error:
                raise self._failed(error) from error

    @property
    def _timeout_s(self) -> float:
        return self._program.timeout_s + (_GRACE_S if self._function.is_async else 0)

    def _failed(self, error: ProcessDied | ProcessHangs) -> SampleError:
        what = f"took longer than {self._program.timeout_s:g} s"
        if isinstance(error, ProcessDied):
            what = f"ended its process: {error}"
        return SampleError("model_failed", f"{self._program.target} {what}"[:500])


def _value(answer: Answer) -> object:
    if "failed" in answer:
        raise SampleError("model_failed", f"the function failed: {answer['failed']}"[:500])
    return answer["value"]
