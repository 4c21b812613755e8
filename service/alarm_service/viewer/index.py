"""An index of the rewards in files: columns in memory, lines and texts on disk."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import Progress

from alarm_models.errors import AlarmModelsError
from alarm_models.recipe.schema import Overrides, Recipe
from alarm_service.captures.lines import CaptureError, constants_of
from alarm_service.json_lines import parsed_line
from alarm_service.viewer.bundle import json_text
from alarm_service.viewer.lines import (
    RewardLine,
    ViewError,
    details_of,
    length_of,
    reward_line,
    sample_line,
    text_of,
)

__all__ = ["Place", "RewardIndex"]

#: Characters of a completion in the list.
_EXCERPT = 90

#: A server answers a sample that is sent again from its group's rewards for as long.
_RETRY_S = 60.0

#: Longer lines are skipped: as much as a request's body may have.
_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line is: the file's number, its offset and its size in bytes."""

    file: int
    offset: int
    size: int


@dataclass(slots=True)
class _Skipped:
    """Numbers of lines that are not shown; ``first`` says why the first unusable one is not."""

    num_scores: int = 0
    num_retried: int = 0
    num_unusable: int = 0
    first: str = ""


class RewardIndex:
    """The rewards of some files, in their order; a context manager that closes the files.

    ``samples`` is the input of `alarm score`, whose lines are joined with those of the one file.
    ``recipes`` give the constants of lines that have none. Raises `ViewError` and `OSError`.
    """

    def __init__(
        self, files: Sequence[Path], samples: Path | None = None, recipes: Sequence[Recipe] = ()
    ) -> None:
        if samples is not None and len(files) != 1:
            raise ViewError("--samples belongs to one file of rewards, so name one file")
        self._recipes = {recipe.name: recipe for recipe in recipes}
        self._places: list[Place] = []
        self._sample_places: list[Place] = []
        self._skipped = _Skipped()
        self._members: dict[str, float | None] = {}
        self._known: dict[str, dict[str, int]] = {}
        self._origins: list[dict[str, Any]] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        self._num_without_text = 0
        self._stack = ExitStack()
        try:
            texts = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the stack
            self._texts = self._stack.enter_context(texts)
            self._text_starts = array("Q")
            self._sources = self._opened(files)
            self._samples = (
                None if samples is None else self._stack.enter_context(samples.open("rb"))
            )
            self._read(samples)
            self._searched = self._mapped()
        except BaseException:
            self._stack.close()
            raise

    def _opened(self, files: Sequence[Path]) -> list[BinaryIO]:
        """Open the files that still exist: a server removes the oldest of a capture."""
        self.files: list[Path] = []
        sources: list[BinaryIO] = []
        for file in files:
            with suppress(FileNotFoundError):
                sources.append(self._stack.enter_context(file.open("rb")))
                self.files.append(file)
        self._num_removed = len(files) - len(sources)
        if not sources:
            raise ViewError(f"{', '.join(map(str, files[:3]))}: no such file")
        return sources

    def __enter__(self) -> RewardIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    @property
    def rewards(self) -> Sequence[float | None]:
        """The reward of each sample; None for a failure."""
        return self._columns["reward"]

    def groups(self) -> list[list[int]]:
        """Return the samples of each group, in the order of the first ones."""
        found: dict[int, list[int]] = {}
        for at, group in enumerate(self._columns["group"]):
            found.setdefault(group, []).append(at)
        return list(found.values())

    def overview(self, chosen: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the columns of all samples, or of chosen ones, with what the page says of them."""
        columns = self._columns
        if chosen is not None:
            columns = {name: [column[at] for at in chosen] for name, column in columns.items()}
        return {
            "files": [str(file) for file in self.files],
            "numbers": None if chosen is None else list(chosen),
            "notes": self.notes(),
            "has_texts": self._num_without_text < len(self),
            "origins": self._origins,
            "errors": list(self._known.get("error", ())),
            "columns": columns,
        }

    def notes(self) -> list[str]:
        """Say what of the files is not shown, and what they do not contain."""
        skipped = self._skipped
        found = {
            f"{self._num_removed} files were removed before they were read.": self._num_removed,
            f"{skipped.num_scores} samples of /score have no reward and are not "
            "shown.": skipped.num_scores,
            f"{_counted(skipped.num_retried)} sent again, and shown once.": skipped.num_retried,
            f"{skipped.num_unusable} lines are no rewards and are not shown: "
            f"{skipped.first}.": skipped.num_unusable,
            f"{self._num_without_text} samples have no texts in these files"
            + self._why_no_texts(): self._num_without_text,
        }
        return [text for text, num in found.items() if num]

    def _why_no_texts(self) -> str:
        if self._samples is not None:
            return "."
        return ": they are redacted, or are the output of alarm score, which --samples joins."

    def details(self, at: int) -> str:
        """Return what the page shows of one sample, as JSON."""
        try:
            return json_text({"at": at, **details_of(self._line(at))})
        except (ValueError, AlarmModelsError) as error:
            return json_text({"at": at, "unusable": f"This line cannot be shown: {error}"})

    def search(self, text: str) -> list[int]:
        """Return the samples whose prompt or completion contains a text, in any case."""
        wanted = text.casefold().encode(errors="surrogatepass")
        found: list[int] = []
        start = 0
        while wanted and (match := self._searched.find(wanted, start)) >= 0:
            at = bisect_right(self._text_starts, match) - 1
            found.append(at)
            start = self._text_starts[at + 1]
        return found

    def _mapped(self) -> mmap.mmap | bytes:
        self._texts.flush()
        self._text_starts.append(self._texts.tell())
        if not self._texts.tell():
            return b""
        return self._stack.enter_context(
            mmap.mmap(self._texts.fileno(), 0, access=mmap.ACCESS_READ)
        )

    def _line(self, at: int) -> RewardLine:
        """Read a line again."""
        place = self._places[at]
        value = _json(os.pread(self._sources[place.file].fileno(), place.size, place.offset))
        line = reward_line(value)
        if line is None:
            raise ValueError("the file has changed")
        if self._samples is not None:
            of_sample = self._sample_places[at]
            raw = os.pread(self._samples.fileno(), of_sample.size, of_sample.offset)
            line = replace(line, sample=_sample(raw))
        return replace(line, constants=self._constants(line))

    def _read(self, samples: Path | None) -> None:
        total = sum(os.fstat(source.fileno()).st_size for source in self._sources)
        joined = None if self._samples is None else _lines(self._samples)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("reading", total=total)
            for file, source in zip(self.files, self._sources, strict=True):
                for line, place, raw in _lines(source, self._sources.index(source)):
                    with_sample = None if joined is None else next(joined, None)
                    if joined is not None and with_sample is None:
                        raise ViewError(f"{samples} has fewer lines than {file}: {_JOINED}")
                    self._add(f"{file}, line {line}", place, raw, with_sample)
                    if len(self._places) % 1000 == 0:
                        progress.update(task, completed=place.offset)
        if joined is not None and next(joined, None) is not None:
            raise ViewError(f"{samples} has more lines than {self.files[0]}: {_JOINED}")
        if not self._places:
            why = f" ({self._skipped.first})" if self._skipped.first else ""
            raise ViewError(
                f"{', '.join(map(str, self.files[:3]))}: no line has a reward{why}; give the "
                "output of alarm score, or a capture"
            )

    def _add(self, where: str, place: Place, raw: bytes, joined: _Line | None) -> None:
        try:
            line = reward_line(_json(raw))
        except ValueError as error:
            self._skipped.num_unusable += 1
            self._skipped.first = self._skipped.first or f"{where}: {error}"
            return
        if line is None:
            self._skipped.num_scores += 1
            return
        if joined is not None:
            _, of_sample, raw_sample = joined
            sample = _sample(raw_sample)
            _require_same_id(where, line.reward, sample)
            line = replace(line, sample=sample)
        if self._is_retried(line):
            self._skipped.num_retried += 1
            return
        if joined is not None:
            self._sample_places.append(of_sample)
        self._places.append(place)
        self._add_columns(line)

    def _is_retried(self, line: RewardLine) -> bool:
        """Whether a member of a group that came in several requests is there already."""
        sample = line.sample
        if sample.get("group_size") is None or sample.get("id") is None:
            return False
        names = ("group", "id", "prompt", "prompt_sha256", "completion", "completion_sha256")
        given = [sample.get(name) for name in names]
        member = _digest([*given, line.fingerprint, line.reward["reward"]])
        if member not in self._members:
            self._members[member] = line.time
            return False
        first, now = self._members[member], line.time
        if first is not None and now is not None and now - first > _RETRY_S:  # of a later step
            self._members[member] = now
            return False
        return True

    def _add_columns(self, line: RewardLine) -> None:
        reward, sample = line.reward, line.sample
        completion = text_of(sample.get("completion"))
        prompt = text_of(sample.get("prompt"))
        error = reward.get("error")
        holistic = reward.get("holistic")
        values = {
            "reward": _rounded(reward["reward"]),
            "z": _rounded(holistic.get("normalized") if isinstance(holistic, dict) else None),
            "length": length_of(sample, completion),
            "time": _rounded(line.time),
            "group": self._number("group", _group_key(line, prompt, len(self._text_starts))),
            "origin": self._origin(line),
            "error": -1
            if not isinstance(error, dict)
            else self._number("error", str(error.get("code"))),
            "admitted": None if reward.get("admitted") is None else int(bool(reward["admitted"])),
            "truncated": int(bool(reward.get("truncated"))),
            "excerpt": (completion or "")[:_EXCERPT],
        }
        for name, value in values.items():
            self._columns[name].append(value)
        self._text_starts.append(self._texts.tell())
        if completion is None:
            self._num_without_text += 1
        else:
            # One line is searched for, so that no match spans both texts.
            both = f"{prompt or ''}\n{completion}\n".casefold()
            self._texts.write(both.encode(errors="surrogatepass"))

    def _number(self, kind: str, name: str) -> int:
        known = self._known.setdefault(kind, {})
        return known.setdefault(name, len(known))

    def _origin(self, line: RewardLine) -> int:
        """Return the number of the recipe, fingerprint and overrides that gave a reward."""
        parts = [line.recipe, line.fingerprint, line.overrides or None]
        number = self._number("origin", json.dumps(parts))
        if number == len(self._origins):
            names = ("recipe", "fingerprint", "overrides")
            self._origins.append(dict(zip(names, parts, strict=True)))
        return number

    def _constants(self, line: RewardLine) -> Mapping[str, Any] | None:
        """Return the constants of a line: its own, or those of the recipe that was named."""
        if line.constants is not None:
            return line.constants
        if line.recipe is None and len(self._recipes) == 1:
            (recipe,) = self._recipes.values()
        elif line.recipe in self._recipes:
            recipe = self._recipes[line.recipe]
        else:
            return None
        params = recipe.rule_params(Overrides.model_validate(dict(line.overrides or {})))
        return constants_of(params).model_dump(mode="json")


#: What the list sorts, filters and shows.
_COLUMNS = (
    "reward", "z", "length", "time", "group", "origin", "error", "admitted", "truncated", "excerpt",
)  # fmt: skip

_JOINED = "--samples is the file that alarm score read, whose lines are those of the rewards"


#: A line's number in its file, where it is, and its bytes.
_Line = tuple[int, Place, bytes]


def _lines(source: BinaryIO, file: int = 0) -> Iterator[_Line]:
    """Yield the lines that are not blank; a last one without an end that is no JSON is left out."""
    offset = number = 0
    source.seek(0)
    while raw := source.readline(_MAX_LINE_BYTES):
        place = Place(file, offset, len(raw))
        offset += len(raw)
        number += 1
        if raw.strip() and (raw.endswith(b"\n") or raw.rstrip().endswith(b"}")):
            yield number, place, raw


def _json(raw: bytes) -> Any:
    try:
        return parsed_line(raw.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error


def _sample(raw: bytes) -> Mapping[str, Any]:
    try:
        return sample_line(_json(raw))
    except (ValueError, CaptureError):
        return {}


def _require_same_id(where: str, reward: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
    is_read = reward.get("error") is None or reward.get("id") is not None
    if is_read and str(reward.get("id")) != str(sample.get("id")):
        raise ViewError(
            f"{where} has the id {reward.get('id')!r}, and its line of --samples "
            f"{sample.get('id')!r}: {_JOINED}"
        )


def _rounded(value: object) -> float | None:
    """Return a number with the digits that sorting needs; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, 6)


def _group_key(line: RewardLine, prompt: str | None, number: int) -> str:
    """Name the group of a sample: its own, else the samples of its prompt in one request.

    Requests may reuse the names of groups; prompts tell those apart that other requests complete.
    """
    sample = line.sample
    group, text = sample.get("group"), prompt or str(sample.get("prompt_sha256", ""))
    if group is None and not text:
        return f"alone {number}"
    is_of_request = group is None or sample.get("group_size") is None
    parts = [
        line.request if is_of_request else None,
        group,
        text if group is None or not is_of_request else None,
    ]
    return _digest(parts)


def _counted(number: int) -> str:
    return "1 sample was" if number == 1 else f"{number} samples were"


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
