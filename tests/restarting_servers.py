"""Scoring servers on real sockets, of which one drops its connections and restarts.

They implement as much of `/score` and `/models` as the client and kind `remote` use. The score of a
completion is its length.
"""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

#: Time to answer a request, so that some are in flight when a server stops.
_ANSWER_S = 0.003

_TIMEOUT_S = 60


class RestartingServer:
    """A server in the running event loop that can stop as if killed, and start again."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._writers: dict[StreamWriter, asyncio.Task[None] | None] = {}
        self._port = 0
        self.num_broken = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Refuse connections, and abort open ones."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self.num_broken += len(self._writers)

    async def ended(self) -> None:
        """Wait until no connection is served."""
        await asyncio.gather(*filter(None, self._writers.values()))

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers[writer] = asyncio.current_task()
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                _, _, length = head.partition("content-length: ")
                body = await reader.readexactly(int(length.split("\r\n")[0] or 0))
                await asyncio.sleep(_ANSWER_S)
                data = json.dumps(_answer(json.loads(body)) if body else _MODELS).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._writers[writer]
            writer.close()


_MODELS = {
    "models": [{"name": "length", "kind": "length", "fingerprint": "f"}],
    "recipes": [{"name": "r", "holistic": "length"}],
    "limits": {"max_samples": 1024, "max_body_bytes": 1 << 26},
}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {
            "id": one.get("id"),
            "score": float(len(one["completion"])),
            "segments": None,
            "num_tokens": 2,
            "truncated": False,
            "error": None,
        }
        for one in request["samples"]
    ]
    usage = {"num_tokens": 2 * len(rows), "num_computed_tokens": 2 * len(rows)}
    return {"model": "length", "fingerprint": "f", "scores": rows, "usage": usage}


@asynccontextmanager
async def restarting_servers(number: int) -> AsyncIterator[list[RestartingServer]]:
    """Run some servers."""
    servers = [RestartingServer() for _ in range(number)]
    for server in servers:
        await server.start()
    try:
        yield servers
    finally:
        for server in servers:
            server.stop()
            await server.ended()


async def ask_while_one_restarts(
    ask: Callable[[int], Awaitable[float]], servers: Sequence[RestartingServer], number: int
) -> list[float]:
    """Return the answers to ``number`` questions, asked 24 at a time, and to five more.

    One server stops after a quarter of the answers and starts again after half of them. Before the
    last five questions the other servers stop, so that the restarted one must answer.
    """
    restarting, *others = servers
    places, num_answered = asyncio.Semaphore(24), 0

    async def limited(index: int) -> float:
        nonlocal num_answered
        async with places:
            answer = await ask(index)
        num_answered += 1
        if num_answered == number // 4:
            restarting.stop()
            assert restarting.num_broken
        if num_answered == number // 2:
            await restarting.start()
        return answer

    async with asyncio.timeout(_TIMEOUT_S):
        answers = list(await asyncio.gather(*map(limited, range(number))))
        for server in others:
            server.stop()
        return answers + list(await asyncio.gather(*map(limited, range(5))))
