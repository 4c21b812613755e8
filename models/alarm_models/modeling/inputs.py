"""A sample as a network takes it, and what a batch of them costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from alarm_models.types import Span

__all__ = ["BatchLayout", "ModelInput"]


class BatchLayout(StrEnum):
    """What a batch costs a network, in tokens."""

    #: The longest sample times the number of samples.
    PADDED = "padded"
    #: The sum of the samples' tokens.
    PACKED = "packed"
    #: As packed, what several samples begin with counted once.
    PREFIX_SHARED = "shared"
    #: No batch at all: each sample runs alone.
    SINGLE = "alone"


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One sample as a network takes it.

    ``reads`` are the ranges of tokens whose hidden states are averaged (a single token mostly) and
    given to the head. ``segments`` are the spans that the reads judge, in order; there are fewer
    reads where truncation cut some off. ``types`` are token type ids, or none. Samples of different
    ``owner`` share nothing in a batch, and nothing that is remembered.
    """

    ids: tuple[int, ...]
    read_positions: tuple[Span, ...]
    truncated: bool
    segments: tuple[Span, ...] = ()
    token_type_ids: tuple[int, ...] = ()
    owner: str = ""

    @property
    def num_tokens(self) -> int:
        """How many tokens the model reads."""
        return len(self.ids)
