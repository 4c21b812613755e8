"""The worker process: runs one function; reads one sample and writes one result per line.

    python -m alarm_models.reward_models.process_worker FOLDER MODULE:NAME TIMEOUT_S

The first output line describes the function: whether it is async, and a digest of its file. Results
of an async function come in any order; one that is abandoned at its timeout reports whether it
``leaves_processes``. Output that a function prints goes to standard error. `process_guard` runs
this program.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from alarm_models.errors import is_exception_or_panic
from alarm_models.sample_json import sample_from_json, writable
from alarm_models.types import Sample

__all__ = ["main"]

#: Characters of an exception that are reported.
_MAX_ERROR = 400


def main() -> None:
    """Serve until standard input or the parent process ends."""
    folder, target, timeout_s = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    if sys.platform != "linux":  # on Linux the kernel does it
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        function, digest = _import_function(target)
    except BaseException as error:  # importing a module may do anything
        _write_answer(answers, failed=f"{target} cannot be imported: {_described(error)}")
        return
    is_async = _is_async(function)
    _write_answer(answers, digest=digest, is_async=is_async)
    if is_async:
        asyncio.run(_serve_concurrently(function, answers, float(timeout_s)))
    else:
        _serve_sequentially(function, answers)


def _import_function(target: str) -> tuple[Callable[[Sample], Any], str]:
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is not a function")
    text = Path(module.__file__).read_bytes() if module.__file__ else b""
    return function, hashlib.sha256(text).hexdigest()


def _is_async(function: Callable[[Sample], Any]) -> bool:
    """Return whether calls of a function, a partial or a callable object must be awaited."""
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return True
    return inspect.iscoroutinefunction(getattr(type(function), "__call__", None))  # noqa: B004


def _serve_sequentially(function: Callable[[Sample], Any], answers: TextIO) -> None:
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            value = function(sample_from_json(asked["sample"]))
            if inspect.isawaitable(value):  # a wrapper that hides a coroutine
                value = asyncio.run(_awaited(value))
            _write_answer(answers, id=asked["id"], value=_result_to_json(value))
        except BaseException as error:  # a user's function may raise anything
            if not is_exception_or_panic(error):
                raise
            _write_answer(answers, id=asked["id"], failed=_described(error))


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


async def _serve_concurrently(
    function: Callable[[Sample], Any], answers: TextIO, timeout_s: float
) -> None:
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def answer(asked: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(timeout_s) as timeout:
                value = await function(sample_from_json(asked["sample"]))
            _write_answer(answers, id=asked["id"], value=_result_to_json(value))
        except TimeoutError as error:
            if timeout.expired():
                failed = f"took longer than {timeout_s:g} s"
                _write_answer(
                    answers, id=asked["id"], failed=failed, leaves_processes=_has_processes()
                )
            else:
                _write_answer(answers, id=asked["id"], failed=_described(error))
        except BaseException as error:  # it may raise anything
            if not is_exception_or_panic(error) and not isinstance(error, asyncio.CancelledError):
                # `sys.exit`: asyncio would cancel the other calls, which are repeated instead, and
                # wait for the thread that reads standard input.
                os._exit(1)
            _write_answer(answers, id=asked["id"], failed=_described(error))

    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        task = asyncio.create_task(answer(json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _result_to_json(value: object) -> object:
    """Convert a number, None or a list of spans to JSON; raise `TypeError` for other results."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [_span_to_json(span) for span in value]
    return float(value)  # type: ignore[arg-type]  # float() raises for anything else


def _span_to_json(span: Any) -> list[object]:
    start, end, *more = span
    score = float(more[0]) if more and more[0] is not None else None
    label = writable(more[1]) if len(more) > 1 and more[1] is not None else None
    return [int(start), int(end), score, label]


def _write_answer(answers: TextIO, **what: object) -> None:
    answers.write(json.dumps(what) + "\n")


def _has_processes() -> bool:
    """Return whether this process has unreaped child processes."""
    if not hasattr(os, "waitid"):
        return True  # unknown
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _described(error: BaseException) -> str:
    """Describe an exception in bounded printable text, as it is sent to callers."""
    try:
        text = repr(error)
    except Exception:
        text = type(error).__name__
    return "".join(one if one.isprintable() else " " for one in text[:_MAX_ERROR])


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
