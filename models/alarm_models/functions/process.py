"""One process that runs a user's function, asked from the event loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from alarm_models.sample import Message, Sample

__all__ = ["START_S", "Answer", "FunctionProcess", "ProcessDied", "ProcessHangs", "command"]

#: What the program says: an ``id``, and a ``value`` or what ``failed``.
Answer = Mapping[str, Any]

#: The longest line: a completion, or its spans.
_MAX_LINE = 1 << 26

#: How long importing the function may take.
START_S = 120


class ProcessDied(Exception):
    """The process ended with this question open; others may have been open too."""


class ProcessHangs(Exception):
    """No answer came in time; the process has been killed."""


class FunctionProcess:
    """A running process; questions may be asked side by side."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._open: dict[int, asyncio.Future[Answer]] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, arguments: Sequence[str]) -> FunctionProcess:
        """Start a process and wait until it has its function; raise `ProcessDied`."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments, stdin=pipe, stdout=pipe, limit=_MAX_LINE
            )
        except OSError as error:
            raise ProcessDied(f"it did not start: {error}") from error
        first = b""
        with suppress(TimeoutError):
            first = await asyncio.wait_for(_lines_of(process).readline(), START_S)
        found: Answer = json.loads(first) if first else {"failed": "it did not start"}
        started = cls(process)
        if "failed" in found:
            await started.close()
            raise ProcessDied(found["failed"])
        return started

    @property
    def is_alive(self) -> bool:
        """Whether it may be asked."""
        return not self._reader.done()

    async def ask(self, sample: Sample, timeout_s: float) -> Answer:
        """Return the function's answer; raise `ProcessDied` or `ProcessHangs`."""
        number = next(self._ids)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                with suppress(ConnectionError):  # the reader hears of its end, and says so
                    self._questions.write(_line(number, sample))
                    await self._questions.drain()
                if not self.is_alive:
                    raise ProcessDied("the process ended")
                return await answer
        except TimeoutError:
            await self.close()
            raise ProcessHangs from None
        finally:
            del self._open[number]

    async def close(self) -> None:
        """Kill it; what is open hears that it died."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._reader

    @property
    def _questions(self) -> asyncio.StreamWriter:
        if self._process.stdin is None:
            raise ProcessDied("it reads no questions")
        return self._process.stdin

    async def _read(self) -> None:
        answers = _lines_of(self._process)
        with suppress(ValueError):  # a line that is too long, or no JSON: nothing it says counts
            while line := await answers.readline():
                answer: Answer = json.loads(line)
                future = self._open.get(answer["id"])
                if future is not None and not future.done():
                    future.set_result(answer)
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        for future in self._open.values():
            if not future.done():
                future.set_exception(ProcessDied("the process ended"))


def _lines_of(process: asyncio.subprocess.Process) -> asyncio.StreamReader:
    if process.stdout is None:
        raise ProcessDied("it gives no answers")
    return process.stdout


def command(folder: str, target: str, timeout_s: float) -> list[str]:
    """Return the command line of the program in `alarm_models.functions.child`."""
    program = "alarm_models.functions.child"
    return [sys.executable, "-m", program, folder, target, str(timeout_s)]


def _line(number: int, sample: Sample) -> bytes:
    said = {
        "prompt": _content(sample.prompt),
        "completion": _content(sample.completion),
        "fields": dict(sample.fields),
        "token_offsets": None if sample.token_offsets is None else list(sample.token_offsets),
        "segments": {name: list(spans) for name, spans in sample.segments.items()},
        "id": sample.id,
        "group": sample.group,
    }
    return json.dumps({"id": number, "sample": said}).encode() + b"\n"


def _content(content: str | tuple[Message, ...]) -> str | list[list[str]]:
    if isinstance(content, str):
        return content
    return [[message.role, message.content] for message in content]
