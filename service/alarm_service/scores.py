"""What scoring a request's samples with one model came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alarm_models.errors import SampleError
from alarm_models.sample import Score

__all__ = ["Scores"]


@dataclass(frozen=True, slots=True)
class Scores:
    """One outcome a sample, in order."""

    outcomes: Sequence[Score | SampleError]

    @property
    def num_tokens(self) -> int:
        """Count the tokens as if each sample were scored alone."""
        return sum(one.num_tokens for one in self.outcomes if isinstance(one, Score))

    @property
    def num_computed_tokens(self) -> int:
        """Count the tokens that the device ran, padding not counted."""
        return sum(one.num_computed_tokens for one in self.outcomes if isinstance(one, Score))
