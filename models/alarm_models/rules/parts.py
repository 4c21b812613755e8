"""What a rule is given of a sample: its holistic score and its aspects, in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alarm_models.hierarchy import Hierarchy

__all__ = ["Part", "Parts", "on_last_token"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one aspect brings to a sample.

    ``rewards`` are its shaped rewards on the tokens, ``[num_tokens]``. ``value`` is their mean over
    the segments that it judged, or the one reward of the whole completion; ``level`` is the same
    before shaping. Both are None where it judged nothing.
    """

    rewards: Sequence[float]
    value: float | None
    level: float | None


@dataclass(frozen=True, slots=True)
class Parts:
    """What a rule combines of one sample.

    ``aspects`` holds those that count; ``num_tokens`` is one where only a scalar is asked for.
    ``reference_z`` is the normalised holistic score of a reference completion, for rules that
    compare with one; ``group`` is the caller's name for the samples of one prompt.
    """

    z: float
    aspects: Mapping[str, Part]
    num_tokens: int
    reference_z: float | None = None
    group: str | None = None

    def weighted(self, hierarchy: Hierarchy) -> Iterator[tuple[float, Part]]:
        """Return the aspects that have a weight, each with its weight."""
        for name, part in self.aspects.items():
            if hierarchy.weights[name] != 0:
                yield hierarchy.weights[name], part

    def passes(self, name: str, hierarchy: Hierarchy) -> bool:
        """Say whether an aspect's level reaches its minimum.

        An aspect without a minimum, or that judged nothing, stops nobody.
        """
        part, minimum = self.aspects.get(name), hierarchy.minimums.get(name)
        if part is None or part.level is None or minimum is None:
            return True
        return part.level >= minimum


def on_last_token(value: float, num_tokens: int) -> tuple[float, ...]:
    """Return the rewards of tokens of which the last has it all."""
    return (*[0.0] * (num_tokens - 1), value)
