"""Runs flows: on threads for AlarmClient, on asyncio for AsyncAlarmClient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Generic, TypeVar

from alarm_client._retry import Action, Flow, Gather, Reply, Send, Sleep
from alarm_client.errors import AlarmError

T = TypeVar("T")


class FlowCancelled(Exception):
    """Raised in a flow whose call has already failed or was cancelled."""


@dataclass(frozen=True, slots=True)
class _Result(Generic[T]):
    """The return value of a flow."""

    value: T


def _resume(flow: Flow[T], outcome: object) -> Action | _Result[T]:
    """Resume a flow with the outcome of its last action; an AlarmError is raised in the flow."""
    try:
        return flow.throw(outcome) if isinstance(outcome, AlarmError) else flow.send(outcome)
    except StopIteration as stop:
        return _Result(stop.value)


def run_flow(
    flow: Flow[T],
    send: Callable[[Send], Reply],
    max_concurrency: int,
    abandoned: Event | None = None,
) -> T:
    """Run a flow on this thread, and gathered flows on threads of the call."""
    abandoned = abandoned or Event()

    def perform(action: Action) -> object:
        if abandoned.is_set():
            raise FlowCancelled
        if isinstance(action, Send):
            return send(action)
        if isinstance(action, Sleep):
            return abandoned.wait(action.seconds)
        return _run_all(action, send, max_concurrency)

    outcome: object = None
    while not isinstance(action := _resume(flow, outcome), _Result):
        try:
            outcome = perform(action)
        except AlarmError as error:
            outcome = error
    return action.value


def _run_all(gathered: Gather, send: Callable[[Send], Reply], max_concurrency: int) -> list[Any]:
    """The results of flows that run on threads; the first error of one abandons the others.

    The threads are daemons, so that an interrupted process ends without waiting for answers.
    """
    abandoned = Event()
    waiting = iter(enumerate(gathered.flows))
    lock = Lock()
    outcomes: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def work() -> None:
        while not abandoned.is_set():
            with lock:
                index, flow = next(waiting, (None, None))
            if index is None or flow is None:
                return
            try:
                outcomes.put((index, run_flow(flow, send, max_concurrency, abandoned), None))
            except BaseException as error:
                outcomes.put((index, None, error))

    results: dict[int, Any] = {}
    try:
        for number in range(min(max_concurrency, len(gathered.flows))):
            # In the caller's context, so that each request carries its trace.
            run = partial(copy_context().run, work)
            Thread(target=run, name=f"alarm-client_{number}", daemon=True).start()
        while len(results) < len(gathered.flows):
            index, value, error = outcomes.get()
            if error is not None:
                raise error
            results[index] = value
    finally:
        abandoned.set()
    return [results[index] for index in range(len(results))]


async def run_flow_async(
    flow: Flow[T],
    send: Callable[[Send], Awaitable[Reply]],
    max_concurrency: int,
) -> T:
    """Run a flow on the running event loop, and gathered flows as tasks."""

    async def perform(action: Action) -> object:
        if isinstance(action, Send):
            return await send(action)
        if isinstance(action, Sleep):
            await asyncio.sleep(action.seconds)
            return None
        return await _run_all_async(action, send, max_concurrency)

    outcome: object = None
    while not isinstance(action := _resume(flow, outcome), _Result):
        try:
            outcome = await perform(action)
        except AlarmError as error:
            outcome = error
    return action.value


async def _run_all_async(
    gathered: Gather,
    send: Callable[[Send], Awaitable[Reply]],
    max_concurrency: int,
) -> list[Any]:
    semaphore = asyncio.Semaphore(max_concurrency)

    async def limited(flow: Flow[T]) -> T:
        async with semaphore:
            return await run_flow_async(flow, send, max_concurrency)

    tasks = [asyncio.create_task(limited(flow)) for flow in gathered.flows]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
