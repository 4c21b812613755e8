"""Large bodies and responses, parsed and serialized in threads, off the event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel

from alarm_models.process_tuning import collect_frozen
from alarm_service.api.body_limit import BODY_BYTES
from alarm_service.errors import BadRequest, TooLarge
from alarm_service.json_pieces import TooManyValues, read_json
from alarm_service.settings import Settings

__all__ = [
    "REQUESTS_PER_ROLLOUT",
    "LargeBodies",
    "OffLoopRoute",
    "is_large",
    "large_response",
    "off_loop",
]

_T = TypeVar("_T")

#: A smaller body is parsed in a few milliseconds; handing it to a thread would cost more.
_LARGE_BYTES = 128 << 10

#: Bodies parsed concurrently: each takes several times its size in memory meanwhile.
_NUM_THREADS = 2

#: Large bodies after which everything is collected once, which takes up to a second.
_FREEZES_PER_COLLECTION = 256

#: Old trainers send a whole rollout in one request, and cannot be configured to send less.
REQUESTS_PER_ROLLOUT = 64


class LargeBodies:
    """The threads that parse large bodies.

    Garbage collection is off meanwhile: parsed JSON is not garbage, and each collection over
    millions of small objects would hold the GIL. The first one afterwards would too, so that what
    there is then is frozen; it is freed by its reference counts, as ever. Frozen cycles are not,
    until the next collection of everything.
    """

    def __init__(self) -> None:
        self._num_running = 0
        self._num_frozen = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="parse")

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a plain function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, call)

    def _run(self, call: Callable[[], _T]) -> _T:
        with self._lock:
            self._num_running += 1
            gc.disable()
        try:
            return call()
        finally:
            with self._lock:
                self._num_running -= 1
                if not self._num_running:
                    self._freeze()
                    gc.enable()

    def _freeze(self) -> None:
        self._num_frozen += 1
        if self._num_frozen % _FREEZES_PER_COLLECTION == 0:
            collect_frozen()
        else:
            gc.freeze()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class OffLoopRoute(APIRoute):
    """A route whose body, where it is large, is parsed and validated in a thread.

    Values and errors are the same as FastAPI's.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's own handler, after the parsing."""
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            if self.body_field is not None and _is_json(request):
                state = request.app.state
                if is_large(request):
                    read = partial(_read, await request.body(), self.body_field, state.settings)
                    request._json = await state.off_loop_bodies.run(read)
                else:
                    with suppress(ValueError, RecursionError):  # the handler answers these
                        _require_few(await request.json(), state.settings)
            return await handle(request)

        return read_and_handle


def is_large(request: Request) -> bool:
    """Whether a request's body is, and its response may be, too large for the event loop."""
    return int(request.scope.get(BODY_BYTES, 0)) > _LARGE_BYTES


async def off_loop(request: Request, call: Callable[[], _T]) -> _T:
    """Run a function of a request's whole body, in a thread where that is large."""
    if is_large(request):
        return cast(_T, await request.app.state.off_loop_bodies.run(call))
    return call()


async def large_response(
    request: Request,
    response: BaseModel,
    rows_name: str,
    row_makers: Sequence[Callable[[], BaseModel]],
) -> Response:
    """Serialize a response in a thread: the ``response`` without rows, and its rows one by one."""
    write = partial(_serialize, response, rows_name, row_makers)
    content = await request.app.state.off_loop_bodies.run(write)
    return Response(content, media_type="application/json")


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    main, _, sub = kind.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _read(body: bytes, field: Any, settings: Settings) -> Any:
    try:
        tree = read_json(body)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg}") from error
    except TooManyValues as error:
        raise TooLarge(f"{error}, without spans: send the samples in several requests") from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body cannot be read as JSON in UTF-8") from error
    _require_few(tree, settings)
    value, faults = field.validate(tree, {}, loc=("body",))
    if faults:
        raise RequestValidationError(faults)
    return value


def _require_few(tree: Any, settings: Settings) -> None:
    """Raise `TooLarge` for more items than any route takes, before each is validated."""
    for name, items in tree.items() if isinstance(tree, dict) else [("the body", tree)]:
        most = settings.max_samples * (1 if name == "samples" else REQUESTS_PER_ROLLOUT)
        if isinstance(items, list) and len(items) > most:
            more = ": send them in several requests" if name == "samples" else ""
            raise TooLarge(f"{name[:200]} has {len(items)} items, a request may have {most}{more}")


def _serialize(
    response: BaseModel, rows_name: str, row_makers: Sequence[Callable[[], BaseModel]]
) -> bytes:
    rows = b",".join(make().model_dump_json().encode() for make in row_makers)
    before, found, after = response.model_dump_json().partition(f'"{rows_name}":[]')
    return b"".join((before.encode(), found[:-1].encode(), rows, b"]", after.encode()))
