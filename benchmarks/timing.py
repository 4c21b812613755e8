"""Times several ways of doing the same work in turns, so that noise falls on all alike."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Timed:
    """What one way took, in seconds a round, and the scores it gave last."""

    seconds: list[float]
    scores: torch.Tensor

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)


def in_turns(ways: Mapping[str, Callable[[int], torch.Tensor]], rounds: int) -> dict[str, Timed]:
    """Run each way on each round's work, after one round that is not counted.

    A way takes the round's number and returns its scores. Returns one `Timed` a way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, torch.Tensor] = {}
    for number in range(-1, rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name] = way(number)
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timed(seconds[name], scores[name]) for name in ways}


def report(title: str, timed: Mapping[str, Timed], ours: str, reference: str) -> None:
    """Print a table and one JSON line; differences are from the reference's scores."""
    table = Table("way", "seconds", "times ours", "largest difference", title=title)
    rows = {}
    for name, one in timed.items():
        difference = (one.scores - timed[reference].scores).abs().max().item()
        ratio = one.median / timed[ours].median
        table.add_row(name, f"{one.median:.3f}", f"{ratio:.2f}", f"{difference:.1e}")
        rows[name] = {"seconds": one.median, "times_ours": ratio, "difference": difference}
    Console().print(table)
    print(json.dumps({"benchmark": title, "ways": rows}))
