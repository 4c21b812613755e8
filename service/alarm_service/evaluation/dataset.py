"""Evaluation data from JSON lines: prompts, completions, policies, preferences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alarm_models.study.pairs import Pairs
from alarm_models.types import Sample
from alarm_service.errors import format_validation_errors
from alarm_service.evaluation.errors import StudyError
from alarm_service.json_lines import opened, parsed_line, read_lines
from alarm_service.schemas import Id, MessageIn, SampleIn, Text, sample_in

__all__ = [
    "GroupIn",
    "Material",
    "PreferenceIn",
    "Preferred",
    "SampleIn",
    "named_files",
    "read_groups",
    "read_material",
    "read_policies",
]

Index = Annotated[int, Field(ge=0)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PreferenceIn(_In):
    """A human preference between two completions, by index; null for neither."""

    first: Index
    second: Index
    preferred: Literal["first", "second"] | None


class GroupIn(_In):
    """A prompt with its completions, and optional values and preferences.

    ``values`` are further scores, one per completion, that are compared like aspects.
    """

    prompt: Text | list[MessageIn]
    completions: list[Text | list[MessageIn]] = Field(min_length=1)
    fields: dict[Text, Text] = Field(default_factory=dict)
    id: Id = None
    values: dict[Text, list[float | None]] = Field(default_factory=dict)
    preferences: list[PreferenceIn] = Field(default_factory=list)

    @model_validator(mode="after")
    def _as_many_as_completions(self) -> GroupIn:
        count = len(self.completions)
        for name, values in self.values.items():
            if len(values) != count:
                raise ValueError(f"values.{name} has {len(values)} for {count} completions")
        for index, one in enumerate(self.preferences):
            if one.first == one.second or max(one.first, one.second) >= count:
                raise ValueError(
                    f"preferences[{index}] compares {one.first} and {one.second}, "
                    f"but must compare two of {count} completions, counted from 0"
                )
        return self


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Preferred:
    """A human preference: ``outcome`` is 1 for ``first``, -1 for ``second``, 0 for neither."""

    first: int
    second: int
    outcome: float


@dataclass(frozen=True, slots=True)
class Material:
    """Samples with their prompts, policies and values, each ``[completions]``.

    Prompts and policies are numbered from 0. Completions without a policy belong to policy 0, whose
    name is empty. ``num_left_out`` counts prompts that not every policy answered.
    """

    samples: tuple[Sample, ...]
    prompts: tuple[int, ...]
    policies: tuple[int, ...]
    policy_names: tuple[str, ...] = ("",)
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    preferred: tuple[Preferred, ...] = ()
    num_left_out: int = 0

    @property
    def num_prompts(self) -> int:
        """The number of prompts."""
        return len(set(self.prompts))

    @property
    def preferred_pairs(self) -> Pairs:
        """The pairs with a human preference."""
        table = [(one.first, one.second, self.prompts[one.first]) for one in self.preferred]
        columns = np.array(table, dtype=np.intp).reshape(-1, 3)
        return Pairs(columns[:, 0], columns[:, 1], columns[:, 2], max(self.prompts) + 1)

    def some_prompts(self, num_prompts: int, seed: int) -> Material:
        """Sample prompts, keeping their order; return all if there are no more."""
        names = sorted(set(self.prompts))
        if num_prompts >= len(names):
            return self
        sampled = np.random.default_rng(seed).choice(len(names), num_prompts, replace=False)
        number = {names[old]: new for new, old in enumerate(sorted(sampled))}
        kept = [index for index, prompt in enumerate(self.prompts) if prompt in number]
        place = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            samples=_take(self.samples, kept),
            prompts=tuple(number[self.prompts[index]] for index in kept),
            policies=_take(self.policies, kept),
            values={name: _take(values, kept) for name, values in self.values.items()},
            preferred=tuple(
                Preferred(place[one.first], place[one.second], one.outcome)
                for one in self.preferred
                if one.first in place
            ),
        )


def _take(row: Sequence[_T], indices: Sequence[int]) -> tuple[_T, ...]:
    return tuple(row[index] for index in indices)


_Record = TypeVar("_Record", bound=BaseModel)

_OUTCOMES = {"first": 1.0, "second": -1.0, None: 0.0}


def read_material(arguments: Sequence[str], num_prompts: int | None, seed: int) -> Material:
    """Read one file of prompts, or one file per policy; sample prompts if asked."""
    if len(arguments) == 1 and "=" not in arguments[0]:
        material = read_groups(Path(arguments[0]))
    else:
        material = read_policies(named_files(arguments))
    return material if num_prompts is None else material.some_prompts(num_prompts, seed)


def named_files(arguments: Sequence[str]) -> dict[str, Path]:
    """Parse ``NAME=FILE`` arguments; the default name is the file's name without its suffix."""
    files: dict[str, Path] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        file = Path(path if equals else argument)
        name = name if equals else file.stem
        if not name or name in files:
            raise StudyError(f"{argument}: each policy needs a unique name: NAME=FILE")
        files[name] = file
    return files


@dataclass(slots=True)
class _Group:
    """The samples of one prompt, with values and preferences."""

    samples: list[Sample]
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    preferences: Sequence[PreferenceIn] = ()


def read_groups(file: Path) -> Material:
    """Read prompts with their completions, or samples, which are grouped by prompt."""
    groups = _groups(file)
    samples: list[Sample] = []
    prompts: list[int] = []
    preferred: list[Preferred] = []
    names = {name for group in groups for name in group.values}
    values: dict[str, list[float]] = {name: [] for name in sorted(names)}
    for prompt, group in enumerate(groups):
        start, count = len(samples), len(group.samples)
        samples += group.samples
        prompts += [prompt] * count
        for name, row in values.items():
            own = group.values.get(name, [None] * count)
            row += [math.nan if one is None else one for one in own]
        preferred += [
            Preferred(start + one.first, start + one.second, _OUTCOMES[one.preferred])
            for one in group.preferences
        ]
    return Material(
        samples=tuple(samples),
        prompts=tuple(prompts),
        policies=(0,) * len(samples),
        values={name: tuple(row) for name, row in values.items()},
        preferred=tuple(preferred),
    )


def read_policies(files: Mapping[str, Path]) -> Material:
    """Read each policy's completions; prompts are matched by ``id``, else by their text.

    Prompts that not every policy answered are left out and counted.
    """
    if len(files) < 2:
        raise StudyError("one policy cannot be compared: give two or more files")
    answers = {name: _by_key(file) for name, file in files.items()}
    keys = list(dict.fromkeys(key for one in answers.values() for key in one))
    common = [key for key in keys if all(key in one for one in answers.values())]
    if not common:
        raise StudyError(
            f"{', '.join(map(str, files.values()))} have no common prompt; prompts are matched "
            "by `id` if a line has one, else by `prompt` and `fields`"
        )
    rows = [
        (sample, prompt, policy)
        for policy, one in enumerate(answers.values())
        for prompt, key in enumerate(common)
        for sample in one[key]
    ]
    samples, prompts, policies = zip(*rows, strict=True)
    return Material(
        samples=samples,
        prompts=prompts,
        policies=policies,
        policy_names=tuple(files),
        num_left_out=len(keys) - len(common),
    )


def _records(file: Path, shape: Callable[[object], type[_Record]]) -> Iterator[tuple[str, _Record]]:
    """Yield the record of each line with its location, ``FILE, line N``."""
    with opened(file) as source:
        for number, line in read_lines(source):
            place = f"{file}, line {number}"
            try:
                value = parsed_line(line)
                yield place, shape(value).model_validate(value)
            except ValidationError as error:
                faults = format_validation_errors(error.errors(), whole="the whole line")
                raise StudyError(f"{place}: {faults}") from error
            except ValueError as error:
                raise StudyError(f"{place} is not JSON: {error}") from error


def _shape(value: object) -> type[GroupIn] | type[SampleIn]:
    return SampleIn if isinstance(value, dict) and "completion" in value else GroupIn


def _groups(file: Path) -> list[_Group]:
    together: dict[str, _Group] = {}
    for place, record in _records(file, _shape):
        if isinstance(record, GroupIn):
            samples = [sample_in(one) for one in _samples(record)]
            together[place] = _Group(samples, record.values, record.preferences)
        else:
            key = f"{record.group!r} {_prompt_key(record)}"
            together.setdefault(key, _Group([])).samples.append(sample_in(record))
    if not together:
        raise StudyError(f"{file} is empty")
    return list(together.values())


def _samples(group: GroupIn) -> list[SampleIn]:
    return [
        SampleIn(prompt=group.prompt, completion=one, fields=group.fields, id=group.id)
        for one in group.completions
    ]


def _prompt_key(sample: SampleIn) -> str:
    return sample.model_dump_json(include={"prompt", "fields"})


def _by_key(file: Path) -> dict[str, list[Sample]]:
    """Read a policy's samples by the key of their prompt."""
    found: dict[str, list[Sample]] = {}
    for _, record in _records(file, lambda _: SampleIn):
        key = _prompt_key(record) if record.id is None else f"id {record.id!r}"
        found.setdefault(key, []).append(sample_in(record))
    if not found:
        raise StudyError(f"{file} is empty")
    return found
