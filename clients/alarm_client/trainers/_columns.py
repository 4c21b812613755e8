"""Fields and groups of samples, from the columns of dataset rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypedDict

from alarm_client.trainers._inputs import prompt_of, text_of_last
from alarm_client.trainers._messages import tools_of
from alarm_client.trainers._settings import Settings
from alarm_client.types import Id, Sample

Row: TypeAlias = Mapping[str, Any]

_ABSENT = object()


def with_rows(
    samples: Sequence[Sample],
    rows: Sequence[Row],
    settings: Settings,
    *,
    prompts: Sequence[Any] | None = None,
    group_size: int | None = None,
    step: object = None,
) -> list[Sample]:
    """Add to samples the fields, tools and groups that the settings read from their dataset rows.

    `prompts`: given if a call may contain all completions of a prompt; the trainer's own, so that
    samples of one prompt are a group even if rollouts have added turns. `group_size`: how many
    completions of a prompt come in calls of one sample each, if the trainer says so; used if the
    row has the trainer's column of groups. `step`: tells the groups of equal prompts in different
    steps apart. ValueError if a configured column is absent.
    """
    if settings.on_failure == "group_mean" and prompts is None:
        raise ValueError(
            f"{settings.trainer}: on_failure 'group_mean' requires calls with all the completions"
            f" of a prompt ({settings.defaults.whole_groups}), and this one has one sample; set "
            "'raise' or a number"
        )
    known = [None] * len(samples) if prompts is None else prompts
    return [
        replace(
            sample,
            fields=_fields(row, settings) or None,
            tools=sample.tools or _tools(row, settings),
            **_membership(sample, row, settings, prompt, group_size, step),
        )
        for sample, row, prompt in zip(samples, rows, known, strict=True)
    ]


def finish_reason_at(
    num_tokens: int, settings: Settings, trainers_limit: int | None = None
) -> str | None:
    """ "length" for a completion of as many tokens as the policy may sample; None if unknown."""
    most = settings.max_completion_tokens
    most = trainers_limit if most is None else most
    return "length" if most is not None and num_tokens >= most else None


def groups_of(samples: Sequence[Sample]) -> list[Id]:
    """Each sample's group."""
    return [sample.group for sample in samples]


def rows_of(columns: Mapping[str, Any], num_rows: int) -> list[Row]:
    """Columns of a batch as one row per sample; values of another length are dropped."""
    whole = {name: values for name, values in columns.items() if _is_column(values, num_rows)}
    return [{name: values[index] for name, values in whole.items()} for index in range(num_rows)]


def row_of(value: Any) -> Row:
    """A row from a mapping, or from an object's public attributes."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    names = getattr(type(value), "model_fields", None) or getattr(value, "__dict__", {})
    extra = getattr(value, "model_extra", None) or {}
    return {**{name: getattr(value, name) for name in names if not name.startswith("_")}, **extra}


def text_of(value: Any) -> str | None:
    """A column's value as a field's string; None for a missing value.

    Strings are unchanged, numbers become decimals, messages the text of the last one; other lists,
    objects and booleans become JSON. NaN means a missing value, as in pandas.
    """
    value = _plain(value)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and _is_message(value[-1]):
        return text_of_last(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (bool, list, Mapping)):
        return json.dumps(value, ensure_ascii=False, default=_of_json)
    return str(value)  # a date, a Decimal


def _fields(row: Row, settings: Settings) -> dict[str, str]:
    if settings.fields is None:
        return _usual(row, settings.defaults.references)
    fields = {}
    for name, column in settings.fields.items():
        text = text_of(_configured(row, column, settings, f"fields.{name}"))
        if text is not None:
            fields[name] = text
    return fields


def _usual(row: Row, columns: Sequence[str]) -> dict[str, str]:
    """The trainer's usual column as `reference`, if its value is a string or a number.

    Other values, such as a list of answers or the parameters of a verifier, are probably not meant
    as a reference; name the column in `fields` to send them.
    """
    for column in columns:
        value = _plain(_lookup(row, column))
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number or (isinstance(value, str) and value):
            text = text_of(value)
            return {} if text is None else {"reference": text}
    return {}


def _tools(row: Row, settings: Settings) -> list[Any] | None:
    """The tools of the settings or of a row.

    A column that only happens to be called tools has no schemas.
    """
    if settings.tools is not None:
        is_column = not settings.tools.startswith("[")
        given = _configured(row, settings.tools, settings, "tools") if is_column else settings.tools
        return tools_of(given)
    try:
        found = tools_of(row.get("tools"))
    except (TypeError, ValueError):
        return None
    return found if all(isinstance(tool, Mapping) for tool in found or ()) else None


class _Membership(TypedDict):
    group: Id
    group_size: int | None


def _membership(
    sample: Sample, row: Row, settings: Settings, prompt: Any, size: int | None, step: object
) -> _Membership:
    """The group of a sample, and its size if the members come in several calls."""
    usual = settings.defaults.group_column
    is_named = usual is not None and _plain(_lookup(row, usual)) not in (None, _ABSENT)
    size = _size(row, settings) or (size if prompt is None and is_named else None)
    if size is not None and prompt is None:
        prompt = sample.prompt
    group = _group(row, settings, prompt)
    if size is not None and settings.group is None and isinstance(group, int):
        group = _digest([group, prompt_of(prompt)])  # other runs on the server count from 0 too
    if size is not None and step is not None:
        group = f"{group}-{step}"
    return {"group": group, "group_size": size}


def _size(row: Row, settings: Settings) -> int | None:
    given = settings.group_size
    if not isinstance(given, str):
        return given
    size = _plain(_configured(row, given, settings, "group_size"))
    if isinstance(size, bool) or not isinstance(size, (int, float)) or size != int(size):
        raise ValueError(f"group_size: the column {given!r} must have an integer, got {size!r}")
    return int(size)


def _group(row: Row, settings: Settings, prompt: Any) -> Id:
    if settings.group is not None:
        value = _plain(_configured(row, settings.group, settings, "group"))
        return _name(value, settings.group)
    if prompt is None:
        return None
    usual = settings.defaults.group_column
    value = None if usual is None else _plain(_lookup(row, usual))
    is_named = value is not None and value is not _ABSENT
    return _name(value, str(usual)) if is_named else _digest(prompt_of(prompt))


def _name(value: Any, column: str) -> Id:
    if value is None or value != value:  # NaN means missing, as in pandas
        raise ValueError(f"group: the column {column!r} has no value for a sample")
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return value
    return _digest(value)


def _digest(value: Any) -> str:
    """A digest of a prompt, equal in every process."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _configured(row: Row, column: str, settings: Settings, setting: str) -> Any:
    value = _lookup(row, column)
    if value is _ABSENT:
        raise ValueError(
            f"{settings.trainer}: {setting} is read from the column {column!r}, which a sample "
            f"does not have; it has {sorted(map(str, row))}"
        )
    return value


def _lookup(row: Row, column: str) -> Any:
    """A column, or a value nested in one, by its dotted name."""
    if column in row:
        return row[column]
    first, _, rest = column.partition(".")
    if not rest or first not in row:
        return _ABSENT
    inner = row[first]
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)  # datasets store objects as JSON
        except ValueError:
            return _ABSENT
    return _lookup(inner, rest) if isinstance(inner, Mapping) else _ABSENT


def _plain(value: Any) -> Any:
    """Arrays and their scalars as lists and numbers, tuples as lists."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple):
        return list(value)
    return value


def _of_json(value: Any) -> Any:
    """Values without a JSON type, converted to one."""
    if isinstance(value, Mapping):
        return dict(value)
    plain = _plain(value)
    return str(value) if plain is value else plain


def _is_message(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "role" in value and "content" in value
    return hasattr(value, "role") and hasattr(value, "content")


def _is_column(values: Any, num_rows: int) -> bool:
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__getitem__"):
        return False
    try:
        return len(values) == num_rows
    except TypeError:
        return False
