"""The criteria of a sample: those of the recipe and its own, without those left out at random."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from alarm_models.errors import SampleError, quoted
from alarm_models.recipe.criteria import CriterionSpec, NamedCriterion, read_rubric
from alarm_models.recipe.specs import RubricSpec
from alarm_models.types import Sample

__all__ = ["Criterion", "Rubric", "rubric_of"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A criterion by its name; its weight is negative for a pitfall."""

    name: str
    text: str
    weight: float
    requires: tuple[str, ...] = ()

    @classmethod
    def of_spec(
        cls, name: str, spec: CriterionSpec, pitfalls: Literal["faults", "avoided"] = "faults"
    ) -> Criterion:
        """Return the criterion of a spec; ``pitfalls`` says how negative weights are worded."""
        weight = spec.signed_weight
        return cls(name, spec.text, abs(weight) if pitfalls == "avoided" else weight, spec.requires)


@dataclass(frozen=True, slots=True)
class Rubric:
    """The criteria to judge, and the names of those that were left out at random."""

    criteria: tuple[Criterion, ...]
    left_out: tuple[str, ...] = ()


def rubric_of(sample: Sample, spec: RubricSpec) -> Rubric:
    """Return the criteria of a sample; raise `SampleError` (``invalid_sample``).

    The sample's own follow those of the recipe.
    """
    tables = [*spec.criteria.items()]
    tables += [(one.name, one.spec) for one in _own_criteria(sample, spec)]
    criteria = [Criterion.of_spec(name, table, spec.pitfalls) for name, table in tables]
    key = f"fields.{spec.criteria_field}"
    if not criteria:
        raise _invalid(f"there is no criterion: send {key}, a list that is not empty")
    twice = sorted({*spec.criteria} & {one.name for one in criteria[len(spec.criteria) :]})
    if twice:
        raise _invalid(f"{key}: {quoted(twice)} are names of criteria of the recipe: rename them")
    _require_order(criteria, key)
    rubric = _without_left_out(criteria, sample, spec)
    if not any(one.weight for one in rubric.criteria):
        raise _invalid(f"{key}: every criterion has weight 0: give one another weight")
    return rubric


def _own_criteria(sample: Sample, spec: RubricSpec) -> list[NamedCriterion]:
    given = sample.fields.get(spec.criteria_field)
    if given is None:
        return []
    key = f"fields.{spec.criteria_field}"
    try:
        own = read_rubric(given, key, num_before=len(spec.criteria))
    except ValueError as error:
        raise _invalid(str(error)) from error
    if not own and not spec.criteria:
        raise _invalid(f"{key} is empty: send at least one criterion")
    return own


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
