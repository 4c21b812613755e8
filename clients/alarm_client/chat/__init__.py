"""Conversations in a policy's chat template, as prompt and completion.

`templates` and `conversation` equal those of `alarm_service.api.compat` line by line, so that
a hook and a URL split the same text alike; a test compares them. Change both.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Message"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: who speaks, and what."""

    role: str
    content: str
