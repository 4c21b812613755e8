"""`alarm score` and `alarm record`: score a file of samples without a server."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from alarm_models.combination.rule_registry import RULES
from alarm_models.errors import SampleError
from alarm_models.process_tuning import disable_malloc_trim
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_service.api.app import create_engine
from alarm_service.captures.lines import CaptureError, is_captured, sample_of
from alarm_service.engine.engine import RewardEngine
from alarm_service.engine.golden_check import GoldenError, record, write_golden_scores
from alarm_service.engine.hierarchical import reward_samples
from alarm_service.errors import format_validation_errors
from alarm_service.json_lines import (
    STANDARD,
    opened,
    parsed_line,
    read_lines,
    replacing,
    require_writable,
)
from alarm_service.observability.logging import set_up_logs
from alarm_service.schemas import SAMPLE_KEYS, RewardOut, SampleIn, reward_out, sample_in
from alarm_service.settings import Settings

__all__ = ["record_file", "score_file"]

#: Samples in flight at once: enough to fill batches of similar length.
_MAX_IN_FLIGHT = 256


def score_file(file: Path, out: Path | None, recipe: Recipe, settings: Settings) -> int:
    """Write the reward of each line's sample; a line that is not a sample gets an error line.

    The lines may be those of a capture, whose rewards are then ignored.
    Either may be ``-``. ``out`` is replaced once everything is written, so it may be ``file``.
    Returns 0, or 1 where any sample failed; raises `FileError` and `OSError`.
    """
    set_up_logs("warning")
    disable_malloc_trim()
    target = STANDARD if out is None else out
    require_writable(target)
    with opened(file) as source:
        return asyncio.run(_score_lines(source, target, recipe, settings))


async def _score_lines(source: BinaryIO, target: Path, recipe: Recipe, settings: Settings) -> int:
    engine = create_engine([recipe], settings)
    await engine.start(logs_failure=False)
    try:
        if engine.life.failure is not None:
            sys.stderr.write(f"alarm: {engine.life.failure}\n")
            return 1
        with replacing(target, _report_partial_output) as out:
            return await _score(engine, recipe, source, out)
    finally:
        await engine.close()


async def _score(engine: RewardEngine, recipe: Recipe, source: BinaryIO, out: IO[bytes]) -> int:
    num_lines = num_failed = 0
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("scoring", total=_num_bytes(source))
        lines = (_parse(*line) for line in read_lines(source))
        is_whole = RULES[recipe.hierarchy.rule].normalizes_requests
        for chunk in _chunks(lines, None if is_whole else _MAX_IN_FLIGHT):
            rewards = await _rewards(engine, recipe, chunk)
            num_lines += len(chunk)
            num_failed += sum(reward.error is not None for reward in rewards)
            out.writelines(f"{reward.model_dump_json()}\n".encode() for reward in rewards)
            progress.advance(task, sum(one.num_bytes for one in chunk))
        done = progress.tasks[0].completed or 1  # the size of a pipe is known at its end
        progress.update(task, total=done, completed=done)
    if not num_lines:
        sys.stderr.write("alarm: the file has no samples\n")
    if num_failed:
        sys.stderr.write(f"alarm: {num_failed} of {num_lines} samples failed; see `error`\n")
    return 1 if num_failed else 0


def _report_partial_output(file: Path) -> None:
    sys.stderr.write(f"alarm: partial output is in {file}\n")


def _num_bytes(source: BinaryIO) -> int | None:
    """Return the size of a file in bytes; None for a pipe."""
    try:
        return os.fstat(source.fileno()).st_size or None
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Parsed:
    """A line's sample or its error, and its id if it has one."""

    sample: SampleIn | SampleError
    num_bytes: int
    id: str | int | None = None


def _chunks(lines: Iterator[_Parsed], size: int | None) -> Iterator[list[_Parsed]]:
    """Yield chunks of at least ``size`` lines; adjacent samples of one group stay together.

    Without a size all lines are one chunk.
    """
    chunk: list[_Parsed] = []
    for line in lines:
        is_full = size is not None and len(chunk) >= size
        if is_full and not _are_of_one_group(chunk[-1].sample, line.sample):
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
    engine: RewardEngine, recipe: Recipe, parsed: Sequence[_Parsed]
) -> list[RewardOut]:
    samples = [one.sample for one in parsed if isinstance(one.sample, SampleIn)]
    done = await reward_samples(
        engine, recipe.name, [sample_in(sample) for sample in samples], Overrides(), "admitted"
    )
    names = list(recipe.aspects)
    rewarded = iter(zip(samples, done.rewards, strict=True))
    return [
        reward_out(*next(rewarded), names)
        if isinstance(one.sample, SampleIn)
        else reward_out(SampleIn(prompt="", completion="", id=one.id), one.sample, names)
        for one in parsed
    ]


def _parse(number: int, line: bytes | None) -> _Parsed:
    num_bytes = len(line or b"")
    try:
        value = parsed_line(line)
    except ValueError as error:
        error_line = SampleError("invalid_sample", f"line {number} is not JSON: {error}")
        return _Parsed(error_line, num_bytes)
    try:
        sample = sample_of(value) if is_captured(value) else value
        return _Parsed(SampleIn.model_validate(sample), num_bytes)
    except CaptureError as error:
        error_line = SampleError("invalid_sample", f"line {number}: {error}")
        return _Parsed(error_line, num_bytes, _id_in(value["sample"]))
    except ValidationError as error:
        faults = format_validation_errors(error.errors(), whole="the whole line", keys=SAMPLE_KEYS)
        error_line = SampleError("invalid_sample", f"line {number}: {faults}")
        return _Parsed(error_line, num_bytes, _id_in(value))


def _id_in(value: object) -> str | int | None:
    """Return the id of an invalid sample, if it has a valid one."""
    if not isinstance(value, dict):
        return None
    try:
        return SampleIn(prompt="", completion="", id=value.get("id")).id
    except ValidationError:
        return None


def record_file(file: Path, out: Path, recipe: Recipe, settings: Settings) -> int:
    """Write the scores of a file's samples; raise `GoldenError` where one cannot be scored.

    The file may be an earlier record, whose scores are then ignored. Returns 0, or 1 where
    the models cannot be loaded.
    """
    set_up_logs("warning")
    require_writable(out)
    samples = _samples(file)
    return asyncio.run(_record(samples, out, recipe.model_copy(update={"parity": None}), settings))


async def _record(samples: list[SampleIn], out: Path, recipe: Recipe, settings: Settings) -> int:
    engine = create_engine([recipe], settings)
    await engine.start(logs_failure=False)
    try:
        if engine.life.failure is not None:
            sys.stderr.write(f"alarm: {engine.life.failure}\n")
            return 1
        write_golden_scores(await record(engine, recipe, samples), out)
    finally:
        await engine.close()
    return 0


def _samples(file: Path) -> list[SampleIn]:
    samples = []
    with opened(file) as source:
        for number, line in read_lines(source):
            try:
                found: Any = parsed_line(line)
                is_origin = isinstance(found, dict) and "models" in found
                if not is_origin:
                    is_stored = isinstance(found, dict) and "sample" in found
                    samples.append(SampleIn.model_validate(found["sample"] if is_stored else found))
            except ValidationError as error:
                faults = format_validation_errors(
                    error.errors(), whole="the whole line", keys=SAMPLE_KEYS
                )
                raise GoldenError(f"{file}, line {number}: {faults}") from error
            except ValueError as error:
                raise GoldenError(f"{file}, line {number} is not JSON: {error}") from error
    if not samples:
        raise GoldenError(f"{file} has no samples")
    return samples
