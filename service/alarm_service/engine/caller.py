"""Who sent a request: what work is shared out by, and what prompts are kept apart by."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INTERNAL", "Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller of the server.

    ``key`` identifies its API key where the server has several, and is empty where keys tell nobody
    apart; ``connection`` is the address and port that it sends from. Callers of one key share that
    key's part of the device.
    """

    key: str = ""
    connection: str = ""

    @property
    def flow(self) -> str:
        """What requests are counted for as they are admitted: the key, else the connection."""
        return self.key or self.connection


#: The server itself: warm-up, parity checks, files scored without a server.
INTERNAL = Caller()
