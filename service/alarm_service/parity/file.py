"""The file of a recipe's parity: samples, and the scores and rewards that they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alarm_models.errors import AlarmModelsError
from alarm_service.faults import explained
from alarm_service.lines import parsed_line, read_lines, write_whole
from alarm_service.web.schemas import SampleIn

__all__ = [
    "Parity",
    "ParityError",
    "StoredModel",
    "StoredOrigin",
    "StoredSample",
    "StoredScore",
    "read_parity",
    "write_parity",
]


class ParityError(AlarmModelsError):
    """Stored scores are not those that are found, or cannot be read; says which and what to do."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoredModel(_Stored):
    """The model that stored scores are of."""

    fingerprint: str
    dtype: str | None


class StoredOrigin(_Stored):
    """The first line: what the scores are of."""

    recipe: str
    fingerprint: str
    models: dict[str, StoredModel]


class StoredScore(_Stored):
    """One model's score, and the scores of its segments and outputs where it has them."""

    score: float | None
    segments: list[float | None] | None = None
    outputs: dict[str, float] | None = None


class StoredSample(_Stored):
    """A line for each sample; a reward that needs another server's scores is not stored."""

    sample: SampleIn
    scores: dict[str, StoredScore]
    reward: float | None = Field(default=None)


_S = TypeVar("_S", bound=_Stored)


@dataclass(frozen=True, slots=True)
class Parity:
    """What a file holds."""

    origin: StoredOrigin
    samples: Sequence[StoredSample]


def read_parity(file: Path) -> Parity:
    """Read a file; raise `ParityError`, naming the line."""
    try:
        with file.open("rb") as source:
            lines = list(read_lines(source))
    except OSError as error:
        raise ParityError(f"the parity file {file} cannot be read: {error.strerror}") from error
    if len(lines) < 2:
        raise ParityError(f"{file} holds no samples: `alarm record` writes one that does")
    (number, first), *rest = lines
    origin = _read(StoredOrigin, first, f"{file}, line {number}")
    samples = [_read(StoredSample, line, f"{file}, line {number}") for number, line in rest]
    return Parity(origin, samples)


def _read(shape: type[_S], line: bytes | None, where: str) -> _S:
    try:
        parsed_line(line)
        return shape.model_validate_json(line or b"")
    except ValidationError as error:
        faults = explained(error.errors())
        raise ParityError(f"{where}: {faults}; `alarm record` writes such files") from error
    except ValueError as error:
        raise ParityError(
            f"{where} is no JSON: {error}; `alarm record` writes such files"
        ) from error


def write_parity(parity: Parity, file: Path) -> None:
    """Write a file."""
    lines = [parity.origin.model_dump_json()]
    lines += [sample.model_dump_json(exclude_defaults=True) for sample in parity.samples]
    write_whole(file, "".join(f"{line}\n" for line in lines))
