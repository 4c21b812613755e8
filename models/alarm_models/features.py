"""A sample as a network takes it: token ids, and where its outputs are read."""

from __future__ import annotations

from dataclasses import dataclass

from alarm_models.sample import Span

__all__ = ["Features"]


@dataclass(frozen=True, slots=True)
class Features:
    """One sample as a network takes it.

    ``reads`` are the ranges of tokens whose hidden states are averaged (a single token mostly) and
    given to the head. ``segments`` are the spans that the reads judge, in order; there are fewer
    reads where truncation cut some off.
    """

    ids: tuple[int, ...]
    reads: tuple[Span, ...]
    truncated: bool
    segments: tuple[Span, ...] = ()

    @property
    def num_tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.ids)
