"""What samples earned and for what; whether an aspect orders them as the holistic reward does."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["AspectEarned", "Earned", "verdicts"]


@dataclass(frozen=True, slots=True)
class AspectEarned:
    """What one aspect gave a sample: its reward before its weight, and the values in it."""

    reward: float
    values: Sequence[float]
    is_sigmoid: bool

    @property
    def mean(self) -> float:
        """The mean value: unlike the reward, not larger for being longer."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, slots=True)
class Earned:
    """What one sample earned and for what; ``num_characters`` is its completion's length."""

    prompt: Hashable
    num_characters: int
    reward: float
    z: float
    admitted: bool
    truncated: bool
    aspects: Mapping[str, AspectEarned]


def verdicts(samples: Sequence[Earned]) -> Iterator[tuple[str, str]]:
    """Compare neighbours of one prompt, as the paper chooses its aspects (Lai et al. 2024).

    Pairs that the holistic reward does not tell apart say nothing. The paper counts ties of the
    aspect as agreement; here they are told apart, as a coarse aspect ties often.
    """
    by_prompt: dict[Hashable, list[Earned]] = {}
    for one in samples:
        by_prompt.setdefault(one.prompt, []).append(one)
    for group in by_prompt.values():
        for first, second in pairwise(group):
            if first.z == second.z:
                continue
            for aspect, earned in first.aspects.items():
                other = second.aspects.get(aspect)
                if other is not None and earned.values and other.values:
                    yield aspect, _verdict(first.z - second.z, earned.mean - other.mean)


def _verdict(holistic: float, aspect: float) -> str:
    if aspect == 0:
        return "tie"
    return "agree" if (holistic > 0) == (aspect > 0) else "disagree"
