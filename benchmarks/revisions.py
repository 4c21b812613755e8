"""Compares two installed revisions: the same requests go to a server of each, in turns.

Noise of the machine affects both servers alike. Reports the seconds of a request, the processor
seconds of all requests and of the start, the pages that a request faulted in, and the resident
memory.

    python benchmarks/revisions.py --before OLD/.venv/bin/alarm --after .venv/bin/alarm

`--busy N` keeps N cores busy with other processes meanwhile. `--singly` sends each sample in a
request of its own, all at once, as 64 clients of a trainer do with the workload `overhead`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import Shape, bert, llama
from children import free_port, server
from load import Post, client
from made_samples import group, ragged
from ours import on_the_wire, write_recipe
from rich.console import Console
from rich.table import Table
from work import Sample, Task

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Workload:
    """A checkpoint and the samples of one request, by the request's number and mean length."""

    build: Callable[[Path, Shape], None]
    samples: Callable[[int, int], Sequence[Sample]]


WORKLOADS = {
    "group": Workload(llama, lambda number, length: group(8, 300, length, number)[0]),
    "overhead": Workload(bert, lambda number, length: ragged(64, length, number)[0]),
    "one-sample": Workload(bert, lambda number, length: ragged(1, length, number)[0]),
}


@dataclass(slots=True)
class Server:
    """A running server of one revision, and what was measured of it."""

    url: str
    pid: int
    start_s: float
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    used_s: float = 0.0
    num_faults: int = 0

    def processor_s(self) -> float:
        """Return the processor seconds of its threads so far."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def page_faults(self) -> int:
        """Count the page faults so far that read nothing from a disk."""
        return int(self._stat()[7])

    def _stat(self) -> list[str]:
        """Return the fields of its state, from the third on (proc_pid_stat(5))."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()

    def resident_mb(self) -> float:
        """Return its resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def score(self, post: Post, requests: Sequence[Sequence[Sample]], *, is_timed: bool) -> None:
        """Send requests at once; if timed, record their time and scores."""
        bodies = [{"samples": list(map(on_the_wire, samples))} for samples in requests]
        used, num_faults, started = self.processor_s(), self.page_faults(), time.perf_counter()
        answers = post(f"{self.url}/score", bodies)
        if is_timed:
            self.seconds.append(time.perf_counter() - started)
            self.used_s += self.processor_s() - used
            self.num_faults += self.page_faults() - num_faults
            self.scores += (_score(one) for answer in answers for one in answer["scores"])


def _score(outcome: Mapping[str, Any]) -> float:
    if outcome["error"] is not None:
        raise RuntimeError(f"a sample is refused: {outcome['error']}")
    score: float = outcome["score"]
    return score


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="one revision's `alarm`")
    parser.add_argument("--after", type=Path, required=True, help="the other revision's `alarm`")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--requests", type=int, default=100, help="requests to each")
    parser.add_argument("--length", type=int, default=80, help="mean words of a completion")
    parser.add_argument("--singly", action="store_true", help="each sample in its own request")
    parser.add_argument("--recipe", type=Path, help="serve it instead of a generated checkpoint")
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy each")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    with neighbors(options.busy):
        for name in options.workloads:
            run(name, options)


@contextmanager
def neighbors(number: int) -> Iterator[None]:
    """Keep this many processes busy while the block runs."""
    busy = [multiprocessing.Process(target=_stay_busy, daemon=True) for _ in range(number)]
    for one in busy:
        one.start()
    try:
        yield
    finally:
        for one in busy:
            one.kill()


def _stay_busy() -> None:
    while True:
        pass


def run(name: str, options: argparse.Namespace) -> None:
    """Measure one workload, and print a table and a line of JSON."""
    workload = WORKLOADS[name]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        recipe = options.recipe
        if recipe is None:
            task = Task(Path(folder), "sequence")
            workload.build(task.folder, Shape(options.layers, options.hidden))
            recipe = write_recipe(task)
        both = {
            side: running.enter_context(
                serving(getattr(options, side), recipe, Path(folder, f"{side}.log"))
            )
            for side in ("before", "after")
        }
        post = running.enter_context(client())
        for number in range(-3, options.requests):
            samples = workload.samples(number, options.length)
            requests = [[one] for one in samples] if options.singly else [samples]
            sides = list(both.values())
            for one in sides if number % 2 else reversed(sides):
                one.score(post, requests, is_timed=number >= 0)
        report(name, both)


@contextmanager
def serving(alarm: Path, recipe: Path, log: Path) -> Iterator[Server]:
    """Serve a recipe with one revision."""
    port = free_port()
    command = [str(alarm), "serve", "--recipe", str(recipe), "--port", str(port), "--device", "cpu"]
    ready = f"http://127.0.0.1:{port}/health/ready"
    with server(command, ready, log) as url:
        one = Server(url, _pid_of(str(port)), 0.0)
        one.start_s = one.processor_s()
        yield one


def _pid_of(port: str) -> int:
    """Return the process that was started with this port among its arguments."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if port.encode() in arguments and b"serve" in arguments:
            return int(entry.parent.name)
    raise RuntimeError(f"no process serves port {port}")


def report(name: str, both: dict[str, Server]) -> None:
    """Print what was measured, and the ratios."""
    before, after = both["before"], both["after"]
    rows = {
        "seconds a request, median": (
            statistics.median(before.seconds),
            statistics.median(after.seconds),
        ),
        "processor seconds, all requests": (before.used_s, after.used_s),
        "processor seconds, start": (before.start_s, after.start_s),
        "page faults a request, mean": (
            before.num_faults / len(before.seconds),
            after.num_faults / len(after.seconds),
        ),
        "resident MB": (before.resident_mb(), after.resident_mb()),
    }
    pairs = zip(before.scores, after.scores, strict=True)
    difference = max(abs(one - other) for one, other in pairs)
    table = Table("", "before", "after", "ratio", title=f"{name}, {len(before.seconds)} requests")
    for row, (one, other) in rows.items():
        table.add_row(row, f"{one:.4g}", f"{other:.4g}", f"{other / max(one, 1e-9):.3f}")
    table.add_row("largest difference of scores", "", f"{difference:.1e}", "")
    Console().print(table)
    found = {row: {"before": one, "after": other} for row, (one, other) in rows.items()}
    print(json.dumps({"benchmark": name, "rows": found, "difference": difference}), flush=True)


if __name__ == "__main__":
    main()
