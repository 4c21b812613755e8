"""The criteria of rubrics, and how those of public rubric files are read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alarm_models.errors import quoted

__all__ = [
    "IMPORTANCE_WEIGHTS",
    "MAX_CRITERIA",
    "MAX_CRITERION_CHARS",
    "CriterionSpec",
    "NamedCriterion",
    "read_rubric",
]

#: Weights of criteria whose recipe or sample sets none. The sizes are those of Rubrics as Rewards
#: (Gunjal et al. 2025, arXiv 2507.17746), which words a pitfall as avoided and so adds its 0.9.
IMPORTANCE_WEIGHTS: Mapping[str, float] = {
    "essential": 1.0,
    "important": 0.7,
    "optional": 0.3,
    "pitfall": -0.9,
}

#: The longest text of a criterion.
MAX_CRITERION_CHARS = 4000

#: The longest name of a criterion.
_MAX_NAME_CHARS = 1000

#: The largest weight of a criterion, whose sums are finite.
_MAX_WEIGHT = 1e6

#: The largest rubric.
MAX_CRITERIA = 2000

#: Groups within groups of a rubric.
_MAX_DEPTH = 20

#: Names of a criterion's keys in public rubric files, in the order in which they are looked for:
#: HealthBench has `criterion` and `points`, Rubrics as Rewards `title`, `description` and `weight`,
#: verifiers `name`, `text` and `weight`, PaperBench `id`, `requirements` and `weight`, DRACO
#: `requirement`, GDPval `criterion`, `score` and `rubric_item_id`, MultiChallenge `question`.
_TEXTS = (
    "text",
    "criterion",
    "description",
    "criteria",
    "requirement",
    "requirements",
    "question",
)
_NAMES = ("name", "title", "id", "rubric_item_id", "rubric_id")
_WEIGHTS = ("weight", "points", "score")
_GROUP_WEIGHTS = ("weight", "points")

#: Keys of groups: their lists contain criteria or further groups.
_GROUPS = ("criteria", "rubrics", "rubric", "sections", "sub_tasks")

#: How Rubrics as Rewards begins a criterion's description.
_IMPORTANCE = re.compile(
    r"\s*(essential|important|optional|pitfall)\s+criteri(?:a|on)\s*:\s*", re.IGNORECASE
)

#: Texts that files write where a rubric is missing.
_MISSING = ("null", "none", "nan", "true", "false")

#: The number of a line, and the types of criteria of OpenRubrics' texts.
_LINE_NUMBER = re.compile(r"(?:\d+[.)]|[-*])\s+")
_LINE_TYPES = ("[hard rule]", "[principle]")


class CriterionSpec(BaseModel):
    """One criterion of a rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: str = Field(
        min_length=1,
        max_length=MAX_CRITERION_CHARS,
        pattern=r"\S",
        description="a statement that is true or false of an answer",
    )
    weight: float | None = Field(
        default=None,
        ge=-_MAX_WEIGHT,
        le=_MAX_WEIGHT,
        description="negative for a pitfall; default: by importance, else 1",
    )
    importance: Literal["essential", "important", "optional", "pitfall"] | None = Field(
        default=None, description="sets the weight: 1, 0.7, 0.3 and -0.9"
    )
    requires: tuple[str, ...] = Field(
        default=(), description="criteria that must be met for this one to count as met"
    )

    @property
    def signed_weight(self) -> float:
        """The weight, negative for a pitfall."""
        if self.weight is not None:
            return self.weight
        return 1.0 if self.importance is None else IMPORTANCE_WEIGHTS[self.importance]

    @model_validator(mode="after")
    def _pitfalls_count_against(self) -> CriterionSpec:
        if (self.importance == "pitfall") != (self.signed_weight < 0) and self.importance:
            raise ValueError(
                f"weight is {self.signed_weight:g} for a criterion that is {self.importance}: "
                "pitfalls, and no others, have a negative weight"
            )
        return self


@dataclass(frozen=True, slots=True)
class NamedCriterion:
    """A criterion of a rubric with its name, and the key where it was found.

    If it ``must_pass``, the whole rubric is worth nothing without it.
    """

    key: str
    name: str
    spec: CriterionSpec
    must_pass: bool = False


def read_rubric(given: Any, key: str, *, num_before: int = 0) -> list[NamedCriterion]:
    """Return the criteria of a rubric in any of the forms of public rubric files.

    A rubric is a list of criteria and groups, an object that is a group, an object of criteria by
    name, the JSON of one of these, or a text. ``num_before`` criteria precede it in the numbers of
    those without a name. Of equal names all but the first get a number. Raises `ValueError`, whose
    message begins with the key.
    """
    if isinstance(given, str):
        given = _parsed(given, key)
    if isinstance(given, Mapping):
        inner = next((name for name in _GROUPS if isinstance(given.get(name), Mapping)), None)
        if inner is not None:
            given, key = given[inner], f"{key}.{inner}"
        found = _by_name(given, key) if _is_by_name(given) else _entries_of(given, key, 0)
    else:
        found = _entries(given, key, 0)
    if len(found) > MAX_CRITERIA:
        raise ValueError(f"{key} has more than {MAX_CRITERIA} criteria, which is the limit")
    _require_clear_names(found)
    return _gated(_with_names(found, num_before))


def _parsed(text: str, key: str) -> Any:
    """Return the criteria of a text: lines with types, JSON as of a column of texts, or itself."""
    if text.strip().lower() in _MISSING or _is_number(text):
        raise ValueError(f"{key} is {quoted(text)}, which is not a rubric: send a list of criteria")
    lines = [line for line in text.splitlines() if line.strip()]
    typed = [one for line in lines if (one := _without_type(line)) is not None]
    if lines and len(typed) == len(lines):
        return typed
    if not text.lstrip().startswith(("[", "{")):
        return [text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key} is not valid JSON: {str(error)[:200]}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_type(line: str) -> str | None:
    """Return a line of OpenRubrics without its number and type, or None without a type."""
    text = line.strip()
    if number := _LINE_NUMBER.match(text):
        text = text[number.end() :]
    for name in _LINE_TYPES:
        if text[-len(name) :].lower() == name:
            return text[: -len(name)].rstrip()
        if text[: len(name)].lower() == name:
            return text[len(name) :].lstrip(" :")
    return None


def _is_by_name(given: Mapping[str, Any]) -> bool:
    """Say whether an object has criteria by name, as recipes write them."""
    return bool(given) and all(isinstance(one, Mapping) for one in given.values())


def _by_name(given: Mapping[str, Any], key: str) -> list[NamedCriterion]:
    return [
        replace(_criterion(one, f"{key}.{name}"), name=_name(name, f"{key}.{name}"))
        for name, one in given.items()
    ]


def _entries(given: Any, key: str, depth: int) -> list[NamedCriterion]:
    """Read a list of criteria and groups."""
    if not isinstance(given, list | tuple):
        raise ValueError(f"{key} must be a list of criteria, not {quoted(given)}")
    if depth > _MAX_DEPTH:
        raise ValueError(f"{key}: at most {_MAX_DEPTH} groups may be within each other")
    found: list[NamedCriterion] = []
    for index, one in enumerate(given):
        found += _entries_of(one, f"{key}[{index}]", depth)
        if len(found) > MAX_CRITERIA:
            break
    return found


def _entries_of(given: Any, key: str, depth: int) -> list[NamedCriterion]:
    """Read a criterion or a group."""
    members = _group_key(given) if isinstance(given, Mapping) else None
    if members is None:
        return [_criterion(given, key)]
    found = _entries(given[members], f"{key}.{members}", depth + 1)
    weight_key = _key_of(given, _GROUP_WEIGHTS)
    if weight_key is None:
        return found
    return _shared(found, _number(given[weight_key], f"{key}.{weight_key}"), f"{key}.{weight_key}")


def _group_key(given: Mapping[str, Any]) -> str | None:
    """Return the key of a group's members, or None for a criterion, whose lists are empty."""
    lists = [name for name in _GROUPS if isinstance(given.get(name), list | tuple)]
    filled = next((name for name in lists if given[name]), None)
    if filled is None and lists and _text_key(given) is None:
        return lists[0]
    return filled


def _shared(found: Sequence[NamedCriterion], weight: float, key: str) -> list[NamedCriterion]:
    """Divide the weight of a group by the weights of its criteria, as PaperBench does."""
    weights = [one.spec.signed_weight for one in found]
    if not 0 <= weight <= _MAX_WEIGHT:
        raise ValueError(f"{key}, of a group, must be from 0 to {_MAX_WEIGHT:g}, not {weight:g}")
    if min(weights, default=0.0) < 0:
        raise ValueError(
            f"{key}: a group divides its weight by those in it, of which none may be negative: "
            "leave the weight of the group out"
        )
    total = fsum(weights) or 1.0
    return [
        replace(
            one,
            spec=CriterionSpec(
                text=one.spec.text, weight=weight * own / total, requires=one.spec.requires
            ),
        )
        for one, own in zip(found, weights, strict=True)
    ]


def _criterion(given: Any, key: str) -> NamedCriterion:
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping):
        raise ValueError(f"{key} must be a criterion, an object with a `text`, not {quoted(given)}")
    _require_yes_or_no(given, key)
    text_key = _text_key(given)
    if text_key is None:
        others = sorted(str(name) for name, one in given.items() if one is not None)
        beside = f", beside the keys {quoted(others)}" if others else ""
        raise ValueError(f"{key} has no text: write `text`{beside}")
    text = given[text_key]
    weight, weight_key = _weight(given, key)
    importance, text = _importance_and_text(given, text, has_weight=weight is not None)
    if isinstance(text, str) and not text.strip():
        raise ValueError(f"{key}.{text_key}: write a statement that is true or false of an answer")
    requires = given.get("requires") or ()
    if not isinstance(requires, list | tuple):
        raise ValueError(f"{key}.requires must be a list of names, not {quoted(requires)}")
    table = {
        "text": _negated(text, given, key),
        "weight": weight,
        "importance": importance,
        "requires": requires,
    }
    try:
        spec = CriterionSpec.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        found_keys = {"text": text_key, "weight": weight_key}
        where = [found_keys.get(str(part), part) for part in first["loc"]]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{'.'.join(map(str, (key, *where)))}: {message}") from error
    name_key = _key_of(given, [one for one in _NAMES if one != text_key])
    name = "" if name_key is None else _name(given[name_key], key)
    modifiers = given.get("modifiers")  # of NeMo Gym's finance agent
    must_pass = isinstance(modifiers, Mapping) and modifiers.get("category") == "must_pass"
    return NamedCriterion(key, name, spec, must_pass)


def _text_key(given: Mapping[str, Any]) -> str | None:
    """Return the key of a criterion's text; a title is one where there is no other."""
    found = _key_of(given, [name for name in _TEXTS if not isinstance(given.get(name), list)])
    return _key_of(given, ["title"]) if found is None else found


def _weight(given: Mapping[str, Any], key: str) -> tuple[float | None, str]:
    """Return a criterion's weight, None if it has none, and the key that has it."""
    found = _key_of(given, _WEIGHTS)
    if found is not None:
        return _number(given[found], f"{key}.{found}"), found
    modifiers = given.get("modifiers")  # of NeMo Gym's finance agent
    if isinstance(modifiers, Mapping) and modifiers.get("severity") is not None:
        where = "modifiers.severity"
        return _number(modifiers["severity"], f"{key}.{where}"), where
    return None, "weight"


def _number(given: Any, key: str) -> float:
    """Return a number, which may be a text."""
    try:
        if isinstance(given, int | float | str) and not isinstance(given, bool):
            return float(given)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{key} must be a number, not {quoted(given)}")


def _importance_and_text(
    given: Mapping[str, Any], text: Any, *, has_weight: bool
) -> tuple[str | None, Any]:
    """Return the importance of a criterion, and its text without it.

    A weight counts more than a category or a description's beginning, because some files word
    pitfalls as avoided and give them positive weights.
    """
    own = given.get("importance")
    importance = own.strip().lower() if isinstance(own, str) else own
    if has_weight and importance not in IMPORTANCE_WEIGHTS:
        importance = None
    category = given.get("category")
    words = [category.strip().lower()] if isinstance(category, str) else []
    if isinstance(text, str) and (begun := _IMPORTANCE.match(text)):
        text = text[begun.end() :]
        words.append(begun[1].lower())
    if importance is None and not has_weight:
        importance = next((word for word in words if word in IMPORTANCE_WEIGHTS), None)
    return importance, text


def _negated(text: Any, given: Mapping[str, Any], key: str) -> Any:
    """Return a text that is true of a good answer to a question whose answer must be no."""
    expected = given.get("pass_criteria")  # of NeMo Gym's MultiChallenge
    if expected is None:
        return text
    word = expected.strip().lower() if isinstance(expected, str) else ""
    if word not in ("yes", "no"):
        raise ValueError(f"{key}.pass_criteria must be YES or NO, not {quoted(expected)}")
    return text if word == "yes" else f"The answer to this question is no: {text}"


def _require_yes_or_no(given: Mapping[str, Any], key: str) -> None:
    """Refuse what changes the meaning of a verdict and is not supported."""
    choices = given.get("choices")  # of verifiers
    words = [str(one).lower() for one in choices] if isinstance(choices, list) else []
    if choices is not None and words != ["no", "yes"]:
        raise ValueError(f"{key}.choices must be no and yes: split the criterion into several")


def _name(given: Any, key: str) -> str:
    """Return the name of a criterion."""
    if isinstance(given, int):
        return quoted(given)
    if not isinstance(given, str) or len(given) > _MAX_NAME_CHARS:
        raise ValueError(
            f"{key}: its name must be a text of at most {_MAX_NAME_CHARS} characters, not "
            f"{quoted(given)}"
        )
    return given.strip()


def _require_clear_names(found: Sequence[NamedCriterion]) -> None:
    """Refuse a requirement that two criteria meet by name."""
    counts = Counter(one.name for one in found)
    for one in found:
        unclear = sorted(name for name in {*one.spec.requires} if counts[name] > 1)
        if unclear:
            raise ValueError(
                f"{one.key}.requires: {quoted(unclear)} are names of two criteria: rename one of "
                "each"
            )


def _with_names(found: Sequence[NamedCriterion], num_before: int) -> list[NamedCriterion]:
    """Name criteria that have no name, or that of an earlier one."""
    given = {one.name for one in found}
    copies: Counter[str] = Counter()
    used: set[str] = set()
    named: list[NamedCriterion] = []
    for number, one in enumerate(found, num_before + 1):
        base = name = one.name or f"criterion_{number}"
        while name in used or (name in given and name != one.name):
            copies[base] += 1
            name = f"{base} ({copies[base] + 1})"
        used.add(name)
        named.append(replace(one, name=name))
    return named


def _gated(named: Sequence[NamedCriterion]) -> list[NamedCriterion]:
    """Let all criteria require those that must pass.

    These require each other in a row, of which the last has all their weight: if one is not met,
    none of their weight counts either.
    """
    gates = [one for one in named if one.must_pass]
    weight = fsum(one.spec.signed_weight for one in gates)
    before = {gate.key: gates[at - 1 : at] for at, gate in enumerate(gates)}
    gated: list[NamedCriterion] = []
    for one in named:
        required = before.get(one.key, gates[-1:])
        spec = one.spec.model_copy(
            update={"requires": (*one.spec.requires, *(gate.name for gate in required))}
        )
        if one.must_pass:
            own = weight if one is gates[-1] else 0.0
            spec = spec.model_copy(update={"weight": own, "importance": None})
        gated.append(replace(one, spec=spec))
    return gated


def _key_of(given: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of these keys that has a value."""
    return next((key for key in keys if given.get(key) is not None), None)
