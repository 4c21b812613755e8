"""What a request is called in logs: its caller's `X-Request-Id`, or one of the server's own."""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["HEADER", "REQUEST_ID", "RequestIds"]

HEADER = "X-Request-Id"

#: Where the id stands in a request's scope.
REQUEST_ID = "alarm.request_id"

_USABLE = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIds:
    """Gives each request its id and each answer the header; an unusable one is replaced."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request under its id."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _USABLE.fullmatch(given) else uuid4().hex
        scope[REQUEST_ID] = request_id

        async def add_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        await self._app(scope, receive, add_header)
