"""The lines of a capture: one JSON object per sample, with its reward or score."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from alarm_models.combination.all_rules import RuleParams
from alarm_models.combination.rewards import weighted_parts
from alarm_models.errors import AlarmModelsError, SampleError
from alarm_models.recipe.schema import Overrides
from alarm_models.sample_json import sample_to_json
from alarm_models.types import Reward, Sample, Score
from alarm_service.errors import format_validation_errors
from alarm_service.json_lines import parsed_line, read_lines
from alarm_service.schemas import RewardOut, SampleIn, reward_out, score_out

__all__ = [
    "FILES",
    "CaptureError",
    "CapturedLine",
    "CapturedRewards",
    "CapturedScores",
    "Constants",
    "capture_files",
    "constants_of",
    "is_captured",
    "read_captured",
    "read_numbered",
    "sample_of",
]

#: Names of the files of a capture; they sort by the time at which they were started.
FILES = "capture-*.jsonl"


class CaptureError(AlarmModelsError):
    """A capture cannot be read; the message names the file and line, and says what to do."""


@dataclass(frozen=True, slots=True)
class CapturedRewards:
    """The samples of one request and their rewards, to be written."""

    request: str
    samples: Sequence[Sample]
    outcomes: Sequence[Reward | SampleError]
    recipe: str
    aspects: Sequence[str]
    fingerprint: str
    overrides: Overrides
    params: RuleParams
    answered_at: float = field(default_factory=time.time)

    def lines(self, *, hashes_texts: bool) -> Iterator[bytes]:
        """Yield one line per sample."""
        overrides = self.overrides.model_dump(mode="json", exclude_unset=True)
        begin = _beginning(self.request, self.answered_at, len(self.samples))
        common = {
            "recipe": self.recipe,
            "fingerprint": self.fingerprint,
            "overrides": overrides,
            "constants": constants_of(self.params).model_dump(mode="json"),
        }
        for sample, outcome in zip(self.samples, self.outcomes, strict=True):
            reward = reward_out(_identified(sample), outcome, self.aspects)
            line = begin | common | {"reward": _dumped(reward), "parts": self._parts(outcome)}
            yield _line(line, sample, "reward", hashes_texts=hashes_texts)

    def _parts(self, outcome: Reward | SampleError) -> dict[str, float] | None:
        return weighted_parts(outcome, self.params) if isinstance(outcome, Reward) else None


@dataclass(frozen=True, slots=True)
class CapturedScores:
    """The samples of one request and the scores of one model, to be written."""

    request: str
    samples: Sequence[Sample]
    outcomes: Sequence[Score | SampleError]
    model: str
    fingerprint: str
    answered_at: float = field(default_factory=time.time)

    def lines(self, *, hashes_texts: bool) -> Iterator[bytes]:
        """Yield one line per sample."""
        begin = _beginning(self.request, self.answered_at, len(self.samples))
        common = {"model": self.model, "fingerprint": self.fingerprint}
        for sample, outcome in zip(self.samples, self.outcomes, strict=True):
            score = score_out(_identified(sample), outcome)
            line = begin | {"score": _dumped(score)} | common
            yield _line(line, sample, "score", hashes_texts=hashes_texts)


def _beginning(request: str, answered_at: float, num_samples: int) -> dict[str, Any]:
    return {
        "request": request,
        "num_samples": num_samples,
        "time": round(answered_at, 3),
        "sample": {},
    }


def _identified(sample: Sample) -> SampleIn:
    return SampleIn(prompt="", completion="", id=sample.id)


def _dumped(result: BaseModel) -> dict[str, Any]:
    return result.model_dump(mode="json")


def _line(line: dict[str, Any], sample: Sample, result: str, *, hashes_texts: bool) -> bytes:
    encoded = sample_to_json(sample)
    if hashes_texts:
        line |= {"sample": _hashed(encoded, sample), "redacted": True}
        if line[result]["error"] is not None:  # a message may quote the text
            line[result]["error"]["message"] = ""
    else:
        line["sample"] = encoded
    # Lone surrogates, which UTF-8 cannot encode, become JSON escapes.
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _hashed(encoded: Mapping[str, Any], sample: Sample) -> dict[str, Any]:
    """Return what may be kept of a sample without its texts."""
    hashed = {
        "prompt_sha256": _sha256(encoded["prompt"]),
        "completion_sha256": _sha256(encoded["completion"]),
        "num_prompt_chars": len(sample.prompt_text),
        "num_completion_chars": len(sample.completion_text),
    }
    if sample.group is not None:
        hashed["group"] = _sha256(sample.group)
    kept = ("id", "group_size", "finish_reason")
    return hashed | {name: encoded[name] for name in kept if name in encoded}


def _sha256(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


class Constants(BaseModel):
    """The constants that combined a reward, overrides included."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rule: str
    threshold: float
    holistic_weight: float
    weights: dict[str, float]


def constants_of(params: RuleParams) -> Constants:
    """Return what is captured of a request's constants."""
    return Constants(
        rule=params.rule,
        threshold=params.threshold,
        holistic_weight=params.holistic_weight,
        weights=dict(params.weights),
    )


class CapturedLine(BaseModel):
    """One line of a capture, as `alarm replay` reads it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    request: str
    #: How many samples of the request are captured; None in captures of earlier versions.
    num_samples: int | None = None
    sample: SampleIn
    fingerprint: str
    recipe: str | None = None
    reward: RewardOut | None = None
    overrides: dict[str, Any] = {}
    constants: Constants | None = None
    model: str | None = None


def is_captured(value: object) -> bool:
    """Whether a line's JSON value is a captured sample rather than a sample itself."""
    return isinstance(value, dict) and isinstance(value.get("sample"), dict) and "request" in value


def sample_of(value: Mapping[str, Any]) -> Any:
    """Return the sample of a captured line, for `alarm score`; raise `CaptureError` if redacted.

    Requests may reuse the names of groups, so the group of one request gets the request's name too.
    """
    _require_texts(value)
    sample = dict(value["sample"])
    if sample.get("group") is not None and sample.get("group_size") is None:
        sample["group"] = f"{value['request']}/{sample['group']}"
    return sample


def _require_texts(value: object) -> None:
    if isinstance(value, dict) and value.get("redacted"):
        raise CaptureError(
            "the capture is redacted: it has hashes instead of texts and cannot be scored again; "
            "capture without --capture-hash-texts"
        )


def capture_files(place: Path) -> list[Path]:
    """Return the files of a capture's folder, oldest first, or a single file.

    Raises `CaptureError` if there is none. A listed file may be removed before it is read.
    """
    if not place.exists():
        raise CaptureError(f"{place} does not exist: name a file, or the folder of --capture")
    if not place.is_dir():
        return [place]
    files = sorted(place.glob(FILES))
    if not files:
        raise CaptureError(f"{place} has no captured file ({FILES})")
    return files


def read_captured(file: Path) -> Iterator[CapturedLine]:
    """Yield the lines of a file that has texts; raise `CaptureError` and `OSError`.

    A last line without an end, which a crash left, is skipped.
    """
    for _, line in read_numbered(file, CapturedLine, _require_texts):
        yield line


_Line = TypeVar("_Line", bound=BaseModel)


def read_numbered(
    file: Path, kind: type[_Line], check: Callable[[object], None] = lambda value: None
) -> Iterator[tuple[int, _Line]]:
    """Yield the number and content of each line; ``check`` raises to refuse a line's value."""
    with file.open("rb") as source:
        for number, line in read_lines(source):
            if line is not None and not line.endswith(b"\n"):
                return
            where = f"{file}, line {number}"
            try:
                value = parsed_line(line)
                if not is_captured(value):
                    raise CaptureError(
                        f"{where} is not a captured sample: it needs `request` and `sample`"
                    )
                check(value)
                yield number, kind.model_validate(value)
            except ValidationError as error:
                faults = format_validation_errors(error.errors(), whole="the whole line")
                raise CaptureError(f"{where}: {faults}") from error
            except CaptureError as error:
                message = str(error)
                raise CaptureError(
                    message if message.startswith(where) else f"{where}: {message}"
                ) from None
            except ValueError as error:
                raise CaptureError(f"{where} is not JSON: {error}") from error
