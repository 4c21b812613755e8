"""One turn of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """Who speaks, and what."""

    role: str
    content: str
