"""Runs flows: on threads for AlarmClient, on asyncio for AsyncAlarmClient."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from threading import Event
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
    """Run a flow on this thread, and gathered flows on a thread pool of the call."""
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
    abandoned = Event()
    pool = ThreadPoolExecutor(min(max_concurrency, len(gathered.flows)), "alarm-client")
    try:
        # In the caller's context, so that each request carries its trace.
        futures = [
            pool.submit(copy_context().run, run_flow, flow, send, max_concurrency, abandoned)
            for flow in gathered.flows
        ]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future in done:
                future.result()
        return [future.result() for future in futures]
    finally:
        abandoned.set()
        pool.shutdown(wait=False, cancel_futures=True)


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
