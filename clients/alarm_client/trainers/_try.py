"""The `try` command: scores completions with the settings of a trainer module."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, TypeAlias

from alarm_client.errors import AlarmError
from alarm_client.trainers._columns import Row, with_rows
from alarm_client.trainers._failures import missing_field
from alarm_client.trainers._inputs import prompt_of
from alarm_client.trainers._settings import Settings, TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource
from alarm_client.types import Reward, Sample, Text

__all__ = ["PLAIN", "add_arguments", "try_samples"]

RowReader: TypeAlias = Callable[[Row], Row]
FieldsReader: TypeAlias = Callable[[Row], Mapping[str, str]]

# Shorter than for training, as a user waits at the terminal.
PLAIN = TrainerDefaults(
    "this client",
    timeout=60.0,
    whole_groups="several --completion",
    references=("reference",),
)
_CONNECT_SECONDS = 10.0

# Settings with a flag of the same name; `fields` and `group` are given as values here.
_FLAGS = ("url", "api_key", "recipe", "model", "overrides", "aspects", "timeout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of both `try` commands."""
    parser.add_argument("--prompt", required=True, help="text, or chat messages as JSON")
    parser.add_argument(
        "--completion",
        required=True,
        action="append",
        help="repeatable; the completions form one group",
    )
    parser.add_argument(
        "--field", action="append", default=[], metavar="NAME=TEXT", help="e.g. reference=Paris"
    )
    parser.add_argument("--row", default="{}", help="dataset row as JSON, to read fields from")
    parser.add_argument("--group", help="group of the samples (default: one per prompt)")
    parser.add_argument("--url", help="URL of the server (ALARM_URL)")
    parser.add_argument("--api-key", help="(ALARM_API_KEY)")
    parser.add_argument("--recipe", help="(ALARM_RECIPE)")
    parser.add_argument("--model", help="a model's raw score instead of a recipe (ALARM_MODEL)")
    parser.add_argument(
        "--overrides", help='changes to the recipe as JSON, such as {"rule": "gdpo"}'
    )
    parser.add_argument("--aspects", choices=["admitted", "all"], default="all")
    parser.add_argument("--timeout", type=float, help="seconds (ALARM_TIMEOUT)")


def defaults_of(trainer: str) -> TrainerDefaults:
    """The defaults of a trainer module, by name; ValueError if there is none."""
    try:
        found: TrainerDefaults = import_module(f"alarm_client.trainers.{trainer}").DEFAULTS
    except (ModuleNotFoundError, AttributeError):
        raise ValueError(f"unknown trainer {trainer!r}: `list` prints all") from None
    return found


def row_reader_of(trainer: str) -> RowReader:
    """The function of a trainer module that flattens dataset rows, if it has one."""
    module = import_module(f"alarm_client.trainers.{trainer}")
    found: RowReader = getattr(module, "row_of_dataset", dict)
    return found


def fields_reader_of(trainer: str) -> FieldsReader:
    """The function of a trainer module that reads fields from a row by default, if it has one."""
    module = import_module(f"alarm_client.trainers.{trainer}")
    found: FieldsReader = getattr(module, "usual_fields", _no_fields)
    return found


def _no_fields(_: Row) -> Mapping[str, str]:
    return {}


def try_samples(
    options: argparse.Namespace,
    defaults: TrainerDefaults,
    write: Callable[[str], object],
    read_row: RowReader = dict,
    read_fields: FieldsReader = _no_fields,
) -> int:
    """Score the samples and print results and missing fields; returns 1 if a reward is missing.

    Raises ValueError or TypeError for an invalid argument or setting, AlarmError if the server does
    not answer.
    """
    settings = _settings(options, defaults)
    source = RewardSource(settings)
    samples = _samples(options, settings, read_row, read_fields)
    for line in _request_lines(settings, samples):
        write(line)
    try:
        rewards = source.rewards(samples)
    except AlarmError as error:
        write(f"failed    {error}")
        missing = missing_field(str(error))
        if missing is not None:
            write(f"missing   fields.{missing}: here by --field {missing}=TEXT or --row")
        return 1
    finally:
        source.close()
    for sample, reward in zip(samples, rewards, strict=True):
        for line in _result_lines(sample, reward):
            write(line)
    return 0 if all(reward.reward is not None for reward in rewards) else 1


def _settings(options: argparse.Namespace, defaults: TrainerDefaults) -> Settings:
    named = {name: getattr(options, name) for name in _FLAGS if getattr(options, name) is not None}
    if "ALARM_CONNECT_TIMEOUT" not in os.environ:
        named["connect_timeout"] = _CONNECT_SECONDS
    settings = read_settings(defaults, named)
    # Failures are printed here, whatever policy a training run has.
    return replace(settings, on_failure="raise")


def _samples(
    options: argparse.Namespace, settings: Settings, read_row: RowReader, read_fields: FieldsReader
) -> list[Sample]:
    row = read_row(_object(options.row, "--row"))
    fields = dict(_pair(pair) for pair in options.field)
    if settings.fields is None:
        fields = {**read_fields(row), **fields}
    prompt = _prompt(options.prompt)
    samples = [Sample(prompt=prompt, completion=text) for text in options.completion]
    is_batch = settings.defaults.whole_groups is not None
    # Fields given by flag need not be in the row.
    fields_by_row = settings.fields
    if fields_by_row is not None:
        fields_by_row = {name: one for name, one in fields_by_row.items() if name not in fields}
    by_row = replace(
        settings, fields=fields_by_row, group=settings.group if options.group is None else None
    )
    prompts = [prompt] * len(samples) if is_batch else None
    samples = with_rows(samples, [row] * len(samples), by_row, prompts=prompts)
    return [
        replace(
            sample,
            fields={**(sample.fields or {}), **fields} or None,
            group=options.group or sample.group,
        )
        for sample in samples
    ]


def _request_lines(settings: Settings, samples: Sequence[Sample]) -> Iterator[str]:
    name = settings.model or settings.recipe or "the server's default recipe"
    changed = f" with {json.dumps(settings.overrides)}" if settings.overrides else ""
    yield f"request   {settings.trainer}: {name}{changed}"
    fields = samples[0].fields or {}
    for field, value in fields.items():
        yield f"field     {field} = {value!r:.82}"


def _result_lines(sample: Sample, reward: Reward) -> Iterator[str]:
    yield f"answer    {str(sample.completion)[:60]!r}"
    if reward.error is not None:
        yield f"failed    {reward.error.code}: {reward.error.message}"
        return
    if reward.reward is None:
        yield "failed    no_segments: the model found no segment"
        return
    yield f"reward    {reward.reward:.6g}"
    if reward.holistic is not None:
        raw = "" if reward.holistic.score is None else f" (raw {reward.holistic.score:.6g})"
        yield f"holistic  {reward.holistic.normalized:.6g}{raw}"
    if reward.admitted is not None:
        yield f"admitted  {'yes' if reward.admitted else 'no: its aspects do not count'}"
    for name, aspect in reward.aspects.items():
        yield f"aspect    {name} {'not computed' if aspect is None else f'{aspect.reward:.6g}'}"
    if reward.truncated:
        yield "truncated the sample exceeded the model's limit"


def _prompt(text: str) -> Text:
    try:
        messages = json.loads(text)
    except ValueError:
        return text
    is_chat = isinstance(messages, list) and all(
        isinstance(one, dict) and "role" in one for one in messages
    )
    return prompt_of(messages) if messages and is_chat else text


def _pair(pair: str) -> tuple[str, str]:
    name, is_there, text = pair.partition("=")
    if not name or not is_there:
        raise ValueError(f"--field must be NAME=TEXT, got {pair!r}")
    return name, text


def _object(text: str, flag: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{flag} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{flag} must be an object")
    return found
