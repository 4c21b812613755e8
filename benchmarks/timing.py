"""Times several variants of the same work in turn, so that noise affects all of them."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from work import Way, Work

__all__ = [
    "Timed",
    "add_rounds",
    "in_turns",
    "largest_difference",
    "report",
    "rounds_of",
    "synchronize",
]

_REST_S = 3


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds per round of one variant, and its numbers in each round, with their twin."""

    seconds: Sequence[float]
    numbers: Mapping[int, Sequence[float]]
    twin: int = 0

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.seconds)


def add_rounds(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that count rounds; ``rounds`` is the default of those that are timed."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="number of rounds, each with new samples"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=1,
        help="number of rounds before them that are not timed; about ten for a model with a prefix "
        "cache, because passes take new memory until it is full",
    )


def rounds_of(options: argparse.Namespace) -> range:
    """Return the numbers of the rounds; those of the warm-up are negative."""
    return range(-options.warm_up, options.rounds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(ways: Mapping[str, Way], work: Work, *, rest_s: float = _REST_S) -> dict[str, Timed]:
    """Run each variant on each round's work; rounds below 0 are the warm-up and not timed.

    Each timed turn starts after a pause of ``rest_s``: a server may poll for work, on a core of
    its own, for a second or two after its last request, and would take that core from the next
    variant.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    numbers: dict[str, dict[int, Sequence[float]]] = {name: {} for name in ways}
    for number, twins in work.items():
        for name, way in ways.items():
            if number >= 0:
                time.sleep(rest_s)
            started = time.perf_counter()
            numbers[name][number] = way.score(twins[way.twin])
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timed(seconds[name], numbers[name], way.twin) for name, way in ways.items()}


def largest_difference(
    numbers: Mapping[int, Sequence[float]], reference: Mapping[int, Sequence[float]]
) -> float:
    """Return the largest difference between two variants' numbers, over common rounds."""
    pairs = [pair for at in reference for pair in zip(numbers[at], reference[at], strict=True)]
    return max(abs(one - other) for one, other in pairs)


def report(
    title: str,
    timed: Mapping[str, Timed],
    base: str,
    references: Sequence[Mapping[int, Sequence[float]]],
) -> None:
    """Print a table and one line of JSON.

    Ratios are relative to the variant ``base``; differences are the largest from ``references``,
    the numbers of each twin. A variant without numbers is only timed.
    """
    table = Table("way", "seconds", "least", "most", "ratio", "difference", title=title)
    rows = {}
    for name, one in timed.items():
        gives = any(map(len, one.numbers.values()))
        difference = largest_difference(one.numbers, references[one.twin]) if gives else None
        ratio = one.median / timed[base].median
        fastest, slowest = min(one.seconds), max(one.seconds)
        shown = [f"{seconds:.3f}" for seconds in (one.median, fastest, slowest)]
        exact = "-" if difference is None else f"{difference:.1e}"
        table.add_row(name, *shown, f"{ratio:.2f}", exact)
        rows[name] = {
            "seconds": list(one.seconds),
            "median": one.median,
            "ratio": ratio,
            "difference": difference,
        }
    Console().print(table)
    print(json.dumps({"benchmark": title, "base": base, "ways": rows}), flush=True)
