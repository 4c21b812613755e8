"""The limits of an engine."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine holds and runs at once, in tokens, and how long a forward pass may take.

    Without ``max_batch_tokens`` each model's own is measured. ``is_deterministic`` runs each sample
    alone, so that its score has the same bits whoever else waits. A ``forward_timeout_s`` of 0 is
    none; so is a ``max_queue_s`` of 0, the seconds of work that may be queued.
    """

    max_queued_tokens: int
    max_batch_tokens: int | None = None
    is_deterministic: bool = False
    forward_timeout_s: float = 0
    max_queue_s: float = 0
