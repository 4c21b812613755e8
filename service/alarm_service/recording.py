"""`alarm record`: samples to the file that a recipe's parity is checked against."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alarm_models.recipe import Recipe
from alarm_service.app import create_engine
from alarm_service.faults import explained
from alarm_service.lines import opened, parsed_line, read_lines, require_writable
from alarm_service.parity.file import ParityError, write_parity
from alarm_service.parity.gate import record
from alarm_service.settings import Settings
from alarm_service.telemetry.logs import set_up_logs
from alarm_service.web.schemas import SampleIn

__all__ = ["record_file"]


def record_file(file: Path, out: Path, recipe: Recipe, settings: Settings) -> int:
    """Write the scores of a file's samples; raise `ParityError` where one cannot be scored.

    The file may be an earlier record, whose scores are then not looked at. Returns 0, or 1 where
    the models cannot be loaded.
    """
    set_up_logs("warning")
    require_writable(out)
    samples = _samples(file)
    return asyncio.run(_run(samples, out, recipe.model_copy(update={"parity": None}), settings))


async def _run(samples: list[SampleIn], out: Path, recipe: Recipe, settings: Settings) -> int:
    engine = create_engine([recipe], settings)
    await engine.start()
    try:
        if engine.life.failure is not None:
            sys.stderr.write(f"alarm: {engine.life.failure}\n")
            return 1
        write_parity(await record(engine, recipe, samples), out)
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
                raise ParityError(f"{file}, line {number}: {explained(error.errors())}") from error
            except ValueError as error:
                raise ParityError(f"{file}, line {number} is no JSON: {error}") from error
    if not samples:
        raise ParityError(f"{file} holds no samples")
    return samples
