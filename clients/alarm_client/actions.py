"""What the client's walks ask of a driver: to send, to sleep, to go several ways at once."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request and hand back its Reply, or throw AlarmConnectionError or DeadlineExceeded.

    `headers` are sent in place of the client's own of the same names. `connect_timeout` bounds the
    seconds until there is a connection.
    """

    method: str
    path: str
    body: bytes | None
    timeout: float
    headers: Mapping[str, str] | None = None
    request_id: str | None = None
    connect_timeout: float = CONNECT_SECONDS


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """Take several walks at once and hand back their results in order."""

    walks: tuple[Steps[Any], ...]


Action: TypeAlias = Send | Sleep | Together
Steps: TypeAlias = Generator[Action, Any, T]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered; header names are in lower case, values read as Latin-1."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request_id: str | None = None
