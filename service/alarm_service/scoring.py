"""`alarm score`: a file of samples to lines of rewards, without a server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from alarm_models.allocator import keep_freed_memory
from alarm_models.errors import SampleError
from alarm_models.recipe import Recipe
from alarm_models.recipe_tables import Overrides
from alarm_service.app import create_engine
from alarm_service.engine import Engine
from alarm_service.faults import explained
from alarm_service.settings import Settings
from alarm_service.story import reward_samples
from alarm_service.telemetry.logs import set_up_logs
from alarm_service.web.answers import RewardOut
from alarm_service.web.schemas import SampleIn
from alarm_service.web.wire import reward_out, sample_in

__all__ = ["score_file"]

#: Samples in the house at once: enough to fill batches of like length.
_AT_ONCE = 256


def score_file(file: Path, out: Path | None, recipe: Recipe, settings: Settings) -> int:
    """Reward each line's sample by the recipe; a line that is no sample gets an error line.

    Returns 0, or 1 where any sample failed.
    """
    set_up_logs("warning")
    keep_freed_memory()
    with file.open("rb") as lines:
        num_lines = sum(1 for line in lines if line.strip())
    engine = create_engine([recipe], settings)
    if out is None:
        return asyncio.run(_run(engine, recipe, file, num_lines, sys.stdout))
    with out.open("w", encoding="utf-8") as target:
        return asyncio.run(_run(engine, recipe, file, num_lines, target))


async def _run(engine: Engine, recipe: Recipe, file: Path, num_lines: int, out: TextIO) -> int:
    num_failed = 0
    await engine.start()
    if engine.life.failure is not None:
        sys.stderr.write(f"alarm: {engine.life.failure}\n")
        return 1
    try:
        with Progress(console=Console(stderr=True)) as progress, file.open("rb") as lines:
            task = progress.add_task("scoring", total=num_lines)
            for chunk in _chunks(_parse(line) for line in lines if line.strip()):
                rewards = await _rewards(engine, recipe, chunk)
                num_failed += sum(reward.error is not None for reward in rewards)
                out.writelines(f"{reward.model_dump_json()}\n" for reward in rewards)
                progress.advance(task, len(chunk))
    finally:
        await engine.close()
    if num_failed:
        sys.stderr.write(f"alarm: {num_failed} of {num_lines} samples failed; see `error`\n")
    return 1 if num_failed else 0


def _chunks(lines: Iterator[SampleIn | SampleError]) -> Iterator[list[SampleIn | SampleError]]:
    """Some lines at a time; neighbours of one group together, however many they are."""
    chunk: list[SampleIn | SampleError] = []
    for line in lines:
        if len(chunk) >= _AT_ONCE and not _are_of_one_group(chunk[-1], line):
            yield chunk
            chunk = []
        chunk.append(line)
    if chunk:
        yield chunk


def _are_of_one_group(one: SampleIn | SampleError, other: SampleIn | SampleError) -> bool:
    if isinstance(one, SampleError) or isinstance(other, SampleError):
        return False
    return one.group is not None and one.group == other.group


async def _rewards(
    engine: Engine, recipe: Recipe, parsed: Sequence[SampleIn | SampleError]
) -> list[RewardOut]:
    samples = [one for one in parsed if isinstance(one, SampleIn)]
    done = await reward_samples(
        engine, recipe.name, [sample_in(sample) for sample in samples], Overrides(), "admitted"
    )
    names = list(recipe.aspects)
    rewarded = iter(zip(samples, done.rewards, strict=True))
    blank = SampleIn(prompt="", completion="")
    return [
        reward_out(*next(rewarded), names)
        if isinstance(one, SampleIn)
        else reward_out(blank, one, names)
        for one in parsed
    ]


def _parse(line: bytes) -> SampleIn | SampleError:
    try:
        return SampleIn.model_validate(json.loads(line))
    except ValidationError as error:
        return SampleError("invalid_sample", explained(error.errors()))
    except (ValueError, RecursionError) as error:
        return SampleError("invalid_sample", f"the line is no JSON: {error}")
