"""A proxy between client and server that cuts, delays or corrupts data."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """Forwards connections to `target`; each chunk in either direction may have a fault.

    `cut`, `delayed` and `garbled` are the shares of chunks that end their connection, wait up to
    `longest_s`, and have one byte changed. After a changed byte, `pieces_between` chunks in that
    direction stay as they are: a digest cannot reveal a change of itself and of its body at once.
    `seen` counts the faults that happened.
    """

    target: tuple[str, int]
    cut: float = 0.0
    delayed: float = 0.0
    garbled: float = 0.0
    longest_s: float = 0.05
    pieces_between: int = 8
    piece_bytes: int = 512
    seed: int = 0
    seen: dict[str, int] = field(
        default_factory=lambda: {"cut": 0, "delayed": 0, "garbled": 0, "pieces": 0}
    )
    url: str = ""

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        self._connections: set[asyncio.Task[None] | None] = set()

    async def serve(self, listening: Callable[[asyncio.Event], object]) -> None:
        """Listen on a free port until the event passed to `listening` is set."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        stopped = asyncio.Event()
        listening(stopped)
        await stopped.wait()
        server.close()
        for one in self._connections:
            one.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.sleep(0)  # aborted connections are closed in the loop's next turn

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
        try:
            behind = await asyncio.open_connection(*self.target)
        except OSError:  # the server is down: so is this connection
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._forward(reader, behind[1])),
            asyncio.create_task(self._forward(behind[0], writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for end in (writer, behind[1]):
                end.transport.abort()
            self._connections.discard(asyncio.current_task())

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        num_plain = self.pieces_between
        with suppress(ConnectionError):
            while piece := await reader.read(self.piece_bytes):
                self.seen["pieces"] += 1
                if self._falls("cut", self.cut):
                    writer.write(piece[: len(piece) // 2])
                    await writer.drain()
                    return
                if self._falls("delayed", self.delayed):
                    await asyncio.sleep(self._dice.uniform(0, self.longest_s))
                num_plain += 1
                if num_plain > self.pieces_between and self._falls("garbled", self.garbled):
                    piece = self._garble(piece)
                    num_plain = 0
                writer.write(piece)
                await writer.drain()

    def _garble(self, piece: bytes) -> bytes:
        at = self._dice.randrange(len(piece))
        # A digit becomes another: what is still JSON, and wrong, is the fault that hides best.
        is_digit = piece[at : at + 1].isdigit()
        changed = b"%d" % ((piece[at] + 1) % 10) if is_digit else bytes([piece[at] ^ 1])
        return piece[:at] + changed + piece[at + 1 :]

    def _falls(self, fault: str, share: float) -> bool:
        falls = self._dice.random() < share
        self.seen[fault] += falls
        return falls


@contextmanager
def proxied(proxy: Proxy) -> Iterator[Proxy]:
    """Run a proxy in a separate thread and event loop."""
    listening = threading.Event()
    stops: list[Callable[[], object]] = []

    def note(stopped: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stopped.set))
        listening.set()

    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(note)))
    thread.start()
    listening.wait()
    try:
        yield proxy
    finally:
        stops[0]()
        thread.join()
