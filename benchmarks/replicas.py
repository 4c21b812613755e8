"""Measures how throughput scales with Ray replicas, and whether groups stay together.

The cluster is local. First the device is a stand-in that sleeps, so that only routing is measured;
then replicas share this machine's cores, with a random Llama.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

from checkpoints import Shape, llama
from made_samples import group
from rich.console import Console
from rich.table import Table
from sleeping import TOKENS_PER_S, sleepers

from alarm_models.recipe.schema import Recipe
from alarm_models.types import Sample
from alarm_service.api.app import create_engine
from alarm_service.engine.devices import ModelLoader
from alarm_service.engine.engine import RewardEngine
from alarm_service.ray.model import RayModelLoader, connect
from alarm_service.settings import Settings

#: Groups per request, and concurrent requests.
_GROUPS = 4
_CALLERS = 8


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sleeping",
        type=int,
        nargs="*",
        default=[1, 2, 4],
        help="numbers of replicas with the sleeping device",
    )
    parser.add_argument(
        "--real",
        type=int,
        nargs="*",
        default=[1, 2],
        help="numbers of replicas on this machine's cores",
    )
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=8, help="samples per group")
    parser.add_argument("--prompt", type=int, default=200, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=50, help="mean tokens of a completion")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    options = parser.parse_args()
    # Replicas import the stand-in device and reserve a core each.
    os.environ["PYTHONPATH"] = os.pathsep.join(one for one in sys.path if one)
    os.environ["OMP_NUM_THREADS"] = "1"
    connect(Settings(ray=True, log_level="error"))
    asyncio.run(run(options))


async def run(options: argparse.Namespace) -> None:
    """Measure each number of replicas in turn, on the same work."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder), Shape(options.layers, options.hidden))
        for device, numbers, load in (
            ("sleeps", options.sleeping, sleepers),
            ("CPU", options.real, None),
        ):
            for number in numbers:
                async with replicas(recipe_of(folder), number, load) as engine:
                    found = await measure(engine, options)
                rows.append({"device": device, "replicas": number, **found})
                print(json.dumps({"benchmark": "replicas"} | rows[-1]), flush=True)
    show(rows, options)


def recipe_of(checkpoint: str) -> Recipe:
    """Make a recipe with one model."""
    rm = {"kind": "sequence", "checkpoint": checkpoint, "template": "{prompt} {completion}"}
    return Recipe.model_validate(
        {
            "name": "replicas",
            "models": {"rm": rm},
            "holistic": {"model": "rm"},
            "hierarchy": {"rule": "holistic_only"},
        }
    )


@asynccontextmanager
async def replicas(
    recipe: Recipe, number: int, load: ModelLoader | None
) -> AsyncIterator[RewardEngine]:
    """Run replicas of the recipe's model; Ray's core reservations are nominal."""
    settings = Settings(ray=True, device="cpu", replicas=number, cpus_per_replica=0.1)
    engine = create_engine([recipe], settings, RayModelLoader(settings, load=load))
    await engine.start()
    if engine.life.failure is not None:
        raise engine.life.failure
    try:
        yield engine
    finally:
        await engine.close()


async def measure(engine: RewardEngine, options: argparse.Namespace) -> dict[str, float]:
    """Score a round of concurrent requests, each with new prompts."""
    seconds = []
    num_tokens = num_computed = 0
    for number in range(-1, options.rounds):
        work = requests(options, number)
        num_samples = sum(map(len, work))
        waiting = iter(work)

        async def caller(waiting: object = waiting) -> None:
            nonlocal num_tokens, num_computed
            for samples in waiting:  # type: ignore[attr-defined]
                scores = await engine.score(None, samples)
                num_tokens += scores.num_tokens
                num_computed += scores.num_computed_tokens

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        if number >= 0:
            seconds.append(time.perf_counter() - started)
    return {
        "samples_per_s": round(num_samples / statistics.median(seconds), 1),
        "computed_share": round(num_computed / num_tokens, 3),
    }


def requests(options: argparse.Namespace, number: int) -> Sequence[Sequence[Sample]]:
    """Make the requests of one round, each with several shuffled groups."""
    made = []
    for request in range(options.requests):
        samples = [
            Sample(one.prompt, one.completion)
            for place in range(_GROUPS)
            for one in group(
                options.size,
                options.prompt,
                options.completion,
                seed=hash((number, request, place)),
            )[0]
        ]
        Random(request).shuffle(samples)
        made.append(samples)
    return made


def show(rows: Sequence[dict[str, object]], options: argparse.Namespace) -> None:
    """Print a table."""
    table = Table("device", "replicas", "samples/s", "times one", "tokens computed")
    ones = {row["device"]: row["samples_per_s"] for row in rows if row["replicas"] == 1}
    for row in rows:
        times = row["samples_per_s"] / ones[row["device"]] if row["device"] in ones else None  # type: ignore[operator]
        table.add_row(
            str(row["device"]),
            str(row["replicas"]),
            f"{row['samples_per_s']}",
            "-" if times is None else f"{times:.2f}",
            f"{row['computed_share']:.0%}",
        )
    table.title = (
        f"{_CALLERS} callers, {_GROUPS} groups of {options.size} a request; "
        f"asleep {TOKENS_PER_S} tokens take a second"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
