"""Where the tokens of many samples stand in one row, and their keys."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from alarm_models.packing.memory import Known, spans_within
from alarm_models.sample import Span

__all__ = ["Layout", "Run"]


class Run(NamedTuple):
    """Tokens that belong together: where their keys stand, and where they stand in the row.

    ``row`` is empty for tokens whose keys are remembered. The row's tokens from ``row.end`` up to
    ``reach`` go on from this run: they see all of its keys.
    """

    keys: Span
    row: Span
    reach: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A row of runs, in which a run's continuations follow it directly.

    ``ids`` and ``positions`` (a token's place in its sample) are those of the row's tokens. Keys
    are the row's, and between them, in the order of the runs, those that are ``known`` from rows
    before. ``pieces`` holds for each sample the spans of the keys that make it up, in order;
    ``num_computed`` how many tokens it brought that nobody laid down before it.
    """

    ids: list[int | tuple[int, int]]
    positions: list[int]
    runs: list[Run]
    known: list[tuple[Span, Known]]
    pieces: list[tuple[Span, ...]]
    num_computed: list[int]

    @property
    def num_keys(self) -> int:
        """Count the keys: the row's tokens and the known ones."""
        return len(self.ids) + sum(len(known) for _, known in self.known)

    @property
    def longest(self) -> int:
        """The length of the longest sample."""
        return max(map(self.length, range(len(self.pieces))))

    @property
    def is_shared(self) -> bool:
        """Whether any run goes on in others."""
        return any(run.reach > run.row.end for run in self.runs)

    def is_cut_by(self, window: int) -> bool:
        """Say whether a sliding window keeps tokens from seeing all of their samples.

        Raises `ValueError` where samples share a beginning that some of them no longer see.
        """
        if self.longest <= window:
            return False
        if self.is_shared:
            raise ValueError("samples longer than the model's window cannot share a beginning")
        return True

    def length(self, sample: int) -> int:
        """Return how many tokens a sample has."""
        return sum(end - start for start, end in self.pieces[sample])

    def keys(self, sample: int, tokens: Span) -> list[int]:
        """Return where the keys of a sample's tokens stand."""
        spans = spans_within(self.pieces[sample], tokens)
        return [place for span in spans for place in range(*span)]

    def places(self, sample: int, tokens: Span) -> list[int]:
        """Return where in the row a sample's tokens stand; none of them may be known."""
        keys = self.keys(sample, tokens)
        if not self.known:
            return keys
        places = []
        for key in keys:
            run = self.runs[bisect_right(self.runs, key, key=_first_key) - 1]
            places.append(run.row.start + key - run.keys.start)
        return places


def _first_key(run: Run) -> int:
    return run.keys.start
