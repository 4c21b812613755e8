"""The criteria of a sample: those of the recipe and its own, without those left out at random."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from alarm_models.errors import SampleError, quoted
from alarm_models.recipe.specs import MAX_NAME_CHARS, CriterionSpec, RubricSpec
from alarm_models.types import Sample

__all__ = ["Criterion", "Rubric", "rubric_of"]

#: The largest rubric of a sample.
_MAX_CRITERIA = 200

#: Names of a criterion's keys in public rubric files: HealthBench has `criterion` and `points`,
#: Rubrics as Rewards `title`, `description` and `weight`, verifiers `name`, `text` and `weight`.
_NAMES = ("name", "title", "id")
_TEXTS = ("text", "criterion", "description", "criteria", "requirement")
_WEIGHTS = ("weight", "points")
_IMPORTANCES = ("importance", "category")

#: How Rubrics as Rewards begins a criterion's description.
_IMPORTANCE = re.compile(
    r"\s*(essential|important|optional|pitfall)\s+criteri(?:a|on)\s*:\s*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion by its name; its weight is negative for a pitfall."""

    name: str
    text: str
    weight: float
    requires: tuple[str, ...] = ()

    @classmethod
    def of_spec(cls, name: str, spec: CriterionSpec) -> Criterion:
        """Make one from a table of a recipe."""
        return cls(name, spec.text, spec.signed_weight, spec.requires)


@dataclass(frozen=True, slots=True)
class Rubric:
    """The criteria to judge, and the names of those that were left out at random."""

    criteria: tuple[Criterion, ...]
    left_out: tuple[str, ...] = ()


def rubric_of(sample: Sample, spec: RubricSpec) -> Rubric:
    """Return the criteria of a sample; raise `SampleError` (``invalid_sample``).

    The sample's own follow those of the recipe.
    """
    criteria = [Criterion.of_spec(*pair) for pair in spec.criteria.items()]
    criteria += _own_criteria(sample, spec.criteria_field, len(criteria))
    key = f"fields.{spec.criteria_field}"
    if not criteria:
        raise _invalid(f"there is no criterion: send {key}, a list that is not empty")
    names = [one.name for one in criteria]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _invalid(f"{key}: {quoted(twice)} are names of two criteria: rename one of each")
    _require_order(criteria, key)
    rubric = _without_left_out(criteria, sample, spec)
    if not any(one.weight for one in rubric.criteria):
        raise _invalid(f"{key}: every criterion has weight 0: give one another weight")
    return rubric


def _own_criteria(sample: Sample, field: str, num_before: int) -> list[Criterion]:
    given = sample.fields.get(field)
    if given is None:
        return []
    key = f"fields.{field}"
    if isinstance(given, str):
        given = _parsed(given, key)
    if isinstance(given, Mapping):
        given = next((given[name] for name in ("criteria", "rubrics") if name in given), given)
    if not isinstance(given, list | tuple):
        raise _invalid(f"{key} must be a list of criteria, not {quoted(given)}")
    if not given and not num_before:
        raise _invalid(f"{key} is empty: send at least one criterion")
    if len(given) > _MAX_CRITERIA:
        raise _invalid(f"{key} has {len(given)} criteria; at most {_MAX_CRITERIA} are judged")
    return [
        _criterion(one, f"{key}[{index}]", f"criterion_{num_before + index + 1}")
        for index, one in enumerate(given)
    ]


def _parsed(text: str, key: str) -> Any:
    """Return the JSON of a text, as of a column of texts; another text is one criterion."""
    if not text.lstrip().startswith(("[", "{")):
        return [text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _invalid(f"{key} is not valid JSON: {str(error)[:200]}") from error


def _criterion(given: Any, key: str, default_name: str) -> Criterion:
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping):
        raise _invalid(f"{key} must be a criterion, an object with a `text`, not {quoted(given)}")
    text = _first(given, _TEXTS)
    importance = _first(given, _IMPORTANCES)
    if isinstance(text, str) and (begun := _IMPORTANCE.match(text)):
        text = text[begun.end() :]
        importance = importance or begun[1]
    table: dict[str, Any] = {"text": text, "weight": _first(given, _WEIGHTS)}
    table["importance"] = importance.lower() if isinstance(importance, str) else importance
    table["requires"] = given.get("requires") or ()
    try:
        spec = CriterionSpec.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, (key, *first["loc"])))
        raise _invalid(f"{where}: {first['msg']}") from error
    return Criterion.of_spec(_name(given, key) or default_name, spec)


def _name(given: Mapping[str, Any], key: str) -> str:
    """Return the name of a criterion, empty if it has none."""
    name = _first(given, _NAMES)
    if name is None:
        return ""
    if isinstance(name, int):
        return quoted(name)
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARS:
        raise _invalid(
            f"{key}: its name must be a text of at most {MAX_NAME_CHARS} characters, not "
            f"{quoted(name)}"
        )
    return name.strip()


def _first(given: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((given[key] for key in keys if given.get(key) is not None), None)


def _require_order(criteria: Sequence[Criterion], key: str) -> None:
    names = {one.name for one in criteria}
    for one in criteria:
        unknown = sorted({*one.requires} - names)
        if unknown:
            raise _invalid(f"{key}: {quoted(one.name)} requires {quoted(unknown)}, unknown names")
    try:
        TopologicalSorter({one.name: one.requires for one in criteria}).prepare()
    except CycleError as error:
        cycle = quoted(" -> ".join(reversed(error.args[1])))
        raise _invalid(f"{key}: `requires` has a cycle, {cycle}: remove one of these") from error


def _without_left_out(criteria: Sequence[Criterion], sample: Sample, spec: RubricSpec) -> Rubric:
    """Leave out criteria at random, equally for all samples of a prompt or group at a step.

    At least one criterion with a positive weight is kept if there is any, and one in any case.
    """
    if not spec.dropout:
        return Rubric(tuple(criteria))
    group = sample.prompt_text if sample.group is None else sample.group
    step = json.dumps(sample.fields.get(spec.step_field))
    draws = [_draw(spec.seed, group, step, one.name) for one in criteria]
    able = [at for at, one in enumerate(criteria) if one.weight > 0] or range(len(criteria))
    always = max(able, key=lambda at: draws[at])
    is_kept = [at == always or draw >= spec.dropout for at, draw in enumerate(draws)]
    pairs = list(zip(criteria, is_kept, strict=True))
    kept = tuple(one for one, is_in in pairs if is_in)
    return Rubric(kept, tuple(one.name for one, is_in in pairs if not is_in))


def _draw(seed: int, group: str, step: str, name: str) -> float:
    """Return a number in [0, 1) that is determined by these values."""
    content = json.dumps([seed, group, step, name]).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big") / 2**56


def _invalid(message: str) -> SampleError:
    return SampleError("invalid_sample", message)
