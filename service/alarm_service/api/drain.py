"""The end of a drain: whoever still waits is answered before the process ends."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alarm_service.api.error_handlers import error_response
from alarm_service.engine.lifecycle import Lifecycle, draining_error

__all__ = ["AnswerAtEnd"]


class AnswerAtEnd:
    """Answers 503 to every request that still runs when the time of the drain is over.

    Whether it waits for the models, for the device or for the rest of its body: its work is
    cancelled, and its caller told to ask another server. An answer that was begun is cut short.
    """

    def __init__(self, app: ASGIApp, life: Lifecycle) -> None:
        self._app = app
        self._life = life
        self._running: set[asyncio.Task[Any]] = set()
        life.on_end(self._cancel_running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request, or answer 503."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        has_started = False

        async def note_start(message: Message) -> None:
            nonlocal has_started
            has_started = has_started or message["type"] == "http.response.start"
            await send(message)

        if not self._life.is_over:
            self._running.add(task)
            try:
                await self._app(scope, receive, note_start)
                return
            except asyncio.CancelledError:
                if not self._life.is_over:
                    raise
                task.uncancel()
            finally:
                self._running.discard(task)
        if not has_started:
            await error_response(draining_error())(scope, receive, send)

    def _cancel_running(self) -> None:
        for task in self._running:
            task.cancel()
