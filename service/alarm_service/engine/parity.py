"""Stored samples with their scores, and how scores are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alarm_models.errors import AlarmModelsError, SampleError
from alarm_models.types import Score
from alarm_service.errors import format_validation_errors
from alarm_service.json_lines import parsed_line, read_lines, write_whole
from alarm_service.schemas import SampleIn

__all__ = [
    "Parity",
    "ParityError",
    "StoredModel",
    "StoredOrigin",
    "StoredSample",
    "StoredScore",
    "difference",
    "is_close",
    "read_parity",
    "shown",
    "write_parity",
]


class ParityError(AlarmModelsError):
    """Stored scores differ from those found, or cannot be read; says which and what to do."""


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
    """The contents of a parity file."""

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
        faults = format_validation_errors(error.errors())
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


#: How far scores may be apart in another precision than they were stored in: bfloat16 keeps three
#: digits, and a network loses some of them.
_ROUGHLY = 0.03


def difference(
    stored: StoredScore, found: Score | SampleError, tolerance: float, *, is_rough: bool
) -> str | None:
    """Say how a score differs from the stored one; None where it does not.

    ``is_rough`` is for another precision: the share of good segments, which a small difference may
    change, is then left to the segments' own scores.
    """
    if isinstance(found, SampleError):
        return f"stored {shown(stored.score)}, found the error {found}"
    pairs: list[tuple[str, float | None, float | None]] = []
    if not (is_rough and stored.segments is not None):
        pairs.append(("", stored.score, found.value))
    segments, now_segments = stored.segments or [], [one.score for one in found.segments or ()]
    if len(segments) != len(now_segments):
        return f"stored {len(segments)} segments, found {len(now_segments)}"
    both = zip(segments, now_segments, strict=True)
    pairs += [(f" of segment {place}", *pair) for place, pair in enumerate(both, 1)]
    outputs, now_outputs = stored.outputs or {}, found.outputs or {}
    for name in {**outputs, **now_outputs}:
        pairs.append((f" of output {name!r}", outputs.get(name), now_outputs.get(name)))
    for what, was, value in pairs:
        if not is_close(was, value, tolerance, is_rough=is_rough):
            return f"stored {shown(was)}{what}, found {shown(value)}"
    return None


def is_close(
    stored: float | None, found: float | None, tolerance: float, *, is_rough: bool
) -> bool:
    """Say whether two numbers are within the tolerance, or within 3% where it is rough."""
    if stored is None or found is None:
        return stored is found
    if is_rough:
        tolerance = max(tolerance, _ROUGHLY * max(1.0, abs(stored)))
    return abs(stored - found) <= tolerance


def shown(value: float | None) -> str:
    """Format a number for a message."""
    return "none" if value is None else f"{value:.6g}"
