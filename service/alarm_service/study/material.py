"""What a study is made on: completions in a row, and which prompt and policy each belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from alarm_models.sample import Sample
from alarm_models.study.pairs import Pairs

__all__ = ["Material", "Preferred"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Preferred:
    """People's word on two completions, by index: 1 for the first, -1 for the second, 0 neither."""

    first: int
    second: int
    outcome: float


@dataclass(frozen=True, slots=True)
class Material:
    """Completions as samples, ``[completions]``, as are ``prompts``, ``policies`` and ``values``.

    Prompts and policies are numbered from 0; completions of no policy belong to the policy 0 of
    an empty name. ``num_left_out`` counts prompts that some policy did not answer.
    """

    samples: tuple[Sample, ...]
    prompts: tuple[int, ...]
    policies: tuple[int, ...]
    policy_names: tuple[str, ...] = ("",)
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    preferred: tuple[Preferred, ...] = ()
    num_left_out: int = 0

    @property
    def num_prompts(self) -> int:
        """How many prompts there are."""
        return len(set(self.prompts))

    @property
    def preferred_pairs(self) -> Pairs:
        """The pairs that people judged."""
        table = [(one.first, one.second, self.prompts[one.first]) for one in self.preferred]
        columns = np.array(table, dtype=np.intp).reshape(-1, 3)
        return Pairs(columns[:, 0], columns[:, 1], columns[:, 2], max(self.prompts) + 1)

    def some_prompts(self, num_prompts: int, seed: int) -> Material:
        """Draw so many prompts, or keep all where there are no more; in the order they had."""
        names = sorted(set(self.prompts))
        if num_prompts >= len(names):
            return self
        drawn = np.random.default_rng(seed).choice(len(names), num_prompts, replace=False)
        number = {names[old]: new for new, old in enumerate(sorted(drawn))}
        kept = [index for index, prompt in enumerate(self.prompts) if prompt in number]
        place = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            samples=_take(self.samples, kept),
            prompts=tuple(number[self.prompts[index]] for index in kept),
            policies=_take(self.policies, kept),
            values={name: _take(values, kept) for name, values in self.values.items()},
            preferred=tuple(
                Preferred(place[one.first], place[one.second], one.outcome)
                for one in self.preferred
                if one.first in place
            ),
        )


def _take(row: Sequence[_T], indices: Sequence[int]) -> tuple[_T, ...]:
    return tuple(row[index] for index in indices)
