"""Criteria of rubrics, and a reader of the formats in which rubrics are published."""

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
    "MAX_CRITERIA",
    "CriterionSpec",
    "NamedCriterion",
    "is_published_form",
    "read_rubric",
    "require_recipe_keys",
]

#: Default weights by importance. The magnitudes are those of Rubrics as Rewards (Gunjal et al.
#: 2025, arXiv 2507.17746), which states pitfalls as avoided and so adds 0.9 for those that are met.
_IMPORTANCE_WEIGHTS: Mapping[str, float] = {
    "essential": 1.0,
    "important": 0.7,
    "optional": 0.3,
    "pitfall": -0.9,
}

#: Maximum length of a criterion's text.
_MAX_TEXT_CHARS = 4000

#: Maximum length of a criterion's name.
_MAX_NAME_CHARS = 1000

#: Maximum absolute weight of a criterion, so that sums stay finite.
_MAX_WEIGHT = 1e6

#: Maximum number of criteria in a rubric.
MAX_CRITERIA = 2000

#: Maximum nesting of groups in a rubric.
_MAX_DEPTH = 20

#: Keys of a criterion in published rubrics; the first that has a value is read. HealthBench has
#: `criterion` and `points`, Rubrics as Rewards `title`, `description` and `weight`, verifiers
#: `name`, `text` and `weight`, PaperBench `id`, `requirements` and `weight`, DRACO `requirement`,
#: GDPval `criterion`, `score` and `rubric_item_id`, MultiChallenge `question`.
_TEXT_KEYS = (
    "text",
    "criterion",
    "description",
    "criteria",
    "requirement",
    "requirements",
    "question",
)
_NAME_KEYS = ("name", "title", "id", "rubric_item_id", "rubric_id")
_WEIGHT_KEYS = ("weight", "points", "score")
_GROUP_WEIGHT_KEYS = ("weight", "points")

#: Further keys of published criteria that are read, and have no counterpart in a recipe.
_FURTHER_KEYS = ("category", "modifiers", "pass_criteria", "choices")

#: Keys whose lists contain the criteria of a group, or further groups.
_GROUP_KEYS = ("criteria", "rubrics", "rubric", "sections", "sub_tasks")

#: The prefix of a description in Rubrics as Rewards.
_IMPORTANCE_PREFIX = re.compile(
    r"\s*(essential|important|optional|pitfall)\s+criteri(?:a|on)\s*:\s*", re.IGNORECASE
)

#: Texts that files write where a rubric is missing.
_MISSING = ("null", "none", "nan", "true", "false")

#: The numbering and the tags of lines in OpenRubrics.
_LINE_NUMBER = re.compile(r"(?:\d+[.)]|[-*])\s+")
_LINE_TAGS = ("[hard rule]", "[principle]")


class CriterionSpec(BaseModel):
    """One criterion of a rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    text: str = Field(
        min_length=1,
        max_length=_MAX_TEXT_CHARS,
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
        return 1.0 if self.importance is None else _IMPORTANCE_WEIGHTS[self.importance]

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
    """A criterion of a rubric, its name, and the key under which it was found.

    If a criterion that ``must_pass`` is not met, no criterion of the rubric counts.
    """

    key: str
    name: str
    spec: CriterionSpec
    must_pass: bool = False


def read_rubric(given: Any, key: str, *, num_before: int = 0) -> list[NamedCriterion]:
    """Return the criteria of a rubric in any of the published forms.

    A rubric is a list of criteria and groups, an object that is a group, an object of criteria by
    name, the JSON of one of these, or a text. A criterion without a name is named by its position,
    counted from ``num_before``; a repeated name gets a number. Raises `ValueError` with a message
    that begins with the key.
    """
    if isinstance(given, str):
        given = _parsed_text(given, key)
    if isinstance(given, Mapping):
        inner = _wrapper_key(given)
        if inner is not None:
            given, key = given[inner], f"{key}.{inner}"
        found = _by_name(given, key) if _is_by_name(given) else _entry(given, key, 0)
    else:
        found = _entries(given, key, 0)
    if len(found) > MAX_CRITERIA:
        raise ValueError(f"{key} has more than {MAX_CRITERIA} criteria, which is the limit")
    _require_unambiguous_requirements(found)
    return _with_gates(_with_unique_names(found, num_before))


def is_published_form(criteria: object) -> bool:
    """Say whether a recipe's `criteria` need `read_rubric`: all but a table of criteria by name."""
    if isinstance(criteria, Mapping):
        has_list = any(isinstance(one, list) for one in criteria.values())
        return has_list or _wrapper_key(criteria) is not None
    return isinstance(criteria, list | tuple)


def require_recipe_keys(criteria: Mapping[str, Any]) -> None:
    """Refuse the keys of published rubrics in a recipe's table of criteria by name.

    Raises `ValueError` with a message that begins with the key and names the recipe's own.
    """
    if any(isinstance(criteria.get(key), str) for key in (*_TEXT_KEYS, "title")):
        raise ValueError(
            "criteria is one criterion without a name: write a list, `criteria = [{ ... }]`, or "
            "`criteria.NAME = { text = ... }`"
        )
    for name, one in criteria.items():
        key = f"criteria.{name}"
        if isinstance(one, str):
            raise ValueError(
                f"{key} is a text, not a table: write `{key} = {{ text = ... }}`, or `criteria` as "
                "a list of texts"
            )
        if isinstance(one, Mapping):
            _require_recipe_keys(one, key)


def _require_recipe_keys(given: Mapping[str, Any], key: str) -> None:
    """Refuse the keys of published rubrics in one criterion of a recipe's table."""
    text_key, weight_key = _text_key(given), _first_key(given, _WEIGHT_KEYS)
    pairs = [("text", text_key), ("weight", weight_key)]
    renamed = [f"`{own}` for `{found}`" for own, found in pairs if found not in (own, None)]
    names = [f"`{found}`" for found in _NAME_KEYS if found in given and found != text_key]
    others = [f"`{found}`" for found in _FURTHER_KEYS if found in given]
    if others:
        raise ValueError(
            f"{key} has {' and '.join(others)}, of published rubrics: write `criteria` as a list, "
            "which may have them"
        )
    steps = [f"write {' and '.join(renamed)}"] if renamed else []
    steps += [f"leave out {' and '.join(names)}, as the table has the name"] if names else []
    if steps:
        raise ValueError(
            f"{key} has keys of published rubrics: {', and '.join(steps)}; or write `criteria` as "
            "a list, which may have them"
        )


def _parsed_text(text: str, key: str) -> Any:
    """Return what a text contains: OpenRubrics' tagged lines, JSON, or else one criterion."""
    if text.strip().lower() in _MISSING or _is_number(text):
        raise ValueError(f"{key} is {quoted(text)}, which is not a rubric: send a list of criteria")
    lines = [line for line in text.splitlines() if line.strip()]
    tagged = [one for line in lines if (one := _without_tag(line)) is not None]
    if lines and len(tagged) == len(lines):
        return tagged
    if not text.lstrip().startswith(("[", "{")):
        return [text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key} is not valid JSON: {str(error)[:200]}") from error


def _is_number(text: str) -> bool:
    """Say whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_tag(line: str) -> str | None:
    """Return a line of OpenRubrics without its number and tag; None if it has no tag."""
    text = line.strip()
    if number := _LINE_NUMBER.match(text):
        text = text[number.end() :]
    for tag in _LINE_TAGS:
        if text[-len(tag) :].lower() == tag:
            return text[: -len(tag)].rstrip()
        if text[: len(tag)].lower() == tag:
            return text[len(tag) :].lstrip(" :")
    return None


def _wrapper_key(given: Mapping[str, Any]) -> str | None:
    """Return the key of the object that has the criteria, if it is within another.

    A criterion may itself be named `criteria`: in an object of criteria by name it wraps nothing.
    """
    for name in _GROUP_KEYS:
        inner = given.get(name)
        if isinstance(inner, Mapping) and (
            _is_by_name(inner) or _group_key(inner) is not None or not _is_by_name(given)
        ):
            return name
    return None


def _is_by_name(given: Mapping[str, Any]) -> bool:
    """Say whether an object has criteria by name, as recipes write them."""
    return bool(given) and all(isinstance(one, Mapping) for one in given.values())


def _by_name(given: Mapping[str, Any], key: str) -> list[NamedCriterion]:
    """Read an object of criteria by name."""
    return [
        replace(_criterion(one, f"{key}.{name}"), name=_name(name, f"{key}.{name}"))
        for name, one in given.items()
    ]


def _entries(given: Any, key: str, depth: int) -> list[NamedCriterion]:
    """Read a list of criteria and groups."""
    if not isinstance(given, list | tuple):
        raise ValueError(f"{key} must be a list of criteria, not {quoted(given)}")
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"{key}: groups are nested more than {_MAX_DEPTH} deep, which is the limit"
        )
    found: list[NamedCriterion] = []
    for index, one in enumerate(given):
        found += _entry(one, f"{key}[{index}]", depth)
        if len(found) > MAX_CRITERIA:
            break
    return found


def _entry(given: Any, key: str, depth: int) -> list[NamedCriterion]:
    """Read a criterion or a group."""
    members = _group_key(given) if isinstance(given, Mapping) else None
    if members is None:
        return [_criterion(given, key)]
    found = _entries(given[members], f"{key}.{members}", depth + 1)
    weight_key = _first_key(given, _GROUP_WEIGHT_KEYS)
    if weight_key is None:
        return found
    weight = _number(given[weight_key], f"{key}.{weight_key}")
    return _with_group_weight(found, weight, f"{key}.{weight_key}")


def _group_key(given: Mapping[str, Any]) -> str | None:
    """Return the key of a group's members; None for a criterion, whose lists are empty."""
    lists = [name for name in _GROUP_KEYS if isinstance(given.get(name), list | tuple)]
    filled = next((name for name in lists if given[name]), None)
    if filled is None and lists and _text_key(given) is None:
        return lists[0]
    return filled


def _with_group_weight(
    found: Sequence[NamedCriterion], weight: float, key: str
) -> list[NamedCriterion]:
    """Distribute a group's weight over its criteria in proportion to theirs, as PaperBench does."""
    weights = [one.spec.signed_weight for one in found]
    if not 0 <= weight <= _MAX_WEIGHT:
        raise ValueError(
            f"{key} is the weight of a group: it must be from 0 to {_MAX_WEIGHT:g}, not {weight:g}"
        )
    if min(weights, default=0.0) < 0:
        raise ValueError(
            f"{key} is the weight of a group that has a criterion of negative weight, which cannot "
            "get a share of it: remove the weight of the group"
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
    """Read one criterion."""
    if isinstance(given, str):
        given = {"text": given}
    if not isinstance(given, Mapping):
        raise ValueError(f"{key} must be a criterion, an object with a `text`, not {quoted(given)}")
    _require_yes_no_choices(given, key)
    text_key = _text_key(given)
    if text_key is None:
        others = sorted(str(name) for name, one in given.items() if one is not None)
        keys = f" to its keys {quoted(others)}" if others else ""
        raise ValueError(f"{key} has no text: add `text`{keys}")
    weight, weight_key = _weight(given, key)
    text, prefix = _without_importance(given[text_key])
    if isinstance(text, str) and not text.strip():
        raise ValueError(f"{key}.{text_key}: write a statement that is true or false of an answer")
    requires = given.get("requires") or ()
    if not isinstance(requires, list | tuple):
        raise ValueError(f"{key}.requires must be a list of names, not {quoted(requires)}")
    table = {
        "text": _affirmative_text(text, given, key),
        "weight": weight,
        "importance": _importance(given, prefix, has_weight=weight is not None),
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
    name_key = _first_key(given, [one for one in _NAME_KEYS if one != text_key])
    name = "" if name_key is None else _name(given[name_key], key)
    return NamedCriterion(key, name, spec, _modifiers(given).get("category") == "must_pass")


def _text_key(given: Mapping[str, Any]) -> str | None:
    """Return the key of a criterion's text: the title if there is no other text."""
    found = _first_key(
        given, [name for name in _TEXT_KEYS if not isinstance(given.get(name), list)]
    )
    return _first_key(given, ["title"]) if found is None else found


def _weight(given: Mapping[str, Any], key: str) -> tuple[float | None, str]:
    """Return a criterion's weight, None if it has none, and the key for errors about it."""
    found = _first_key(given, _WEIGHT_KEYS)
    if found is not None:
        return _number(given[found], f"{key}.{found}"), found
    severity = _modifiers(given).get("severity")
    if severity is not None:
        return _number(severity, f"{key}.modifiers.severity"), "modifiers.severity"
    return None, "weight"


def _modifiers(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a criterion's `modifiers`, which NeMo Gym's finance agent has."""
    modifiers = given.get("modifiers")
    return modifiers if isinstance(modifiers, Mapping) else {}


def _number(given: Any, key: str) -> float:
    """Return a number that may be written as a text."""
    try:
        if isinstance(given, int | float | str) and not isinstance(given, bool):
            return float(given)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{key} must be a number, not {quoted(given)}")


def _without_importance(text: Any) -> tuple[Any, str | None]:
    """Return a text without the prefix that names its importance, and that importance."""
    if isinstance(text, str) and (prefix := _IMPORTANCE_PREFIX.match(text)):
        return text[prefix.end() :], prefix[1].lower()
    return text, None


def _importance(given: Mapping[str, Any], prefix: str | None, *, has_weight: bool) -> Any:
    """Return the importance of a criterion from its key, its category or its text's prefix.

    A weight takes precedence over category and prefix, because some files state pitfalls as avoided
    and give them positive weights.
    """
    own = given.get("importance")
    importance = own.strip().lower() if isinstance(own, str) else own
    if has_weight:
        is_known = isinstance(importance, str) and importance in _IMPORTANCE_WEIGHTS
        return importance if is_known else None
    if importance is not None:
        return importance
    category = given.get("category")
    if isinstance(category, str) and category.strip().lower() in _IMPORTANCE_WEIGHTS:
        return category.strip().lower()
    return prefix


def _affirmative_text(text: Any, given: Mapping[str, Any], key: str) -> Any:
    """Return a text that is true of a good answer, also if the expected answer to it is no."""
    expected = given.get("pass_criteria")  # of NeMo Gym's MultiChallenge
    if expected is None:
        return text
    word = expected.strip().lower() if isinstance(expected, str) else ""
    if word not in ("yes", "no"):
        raise ValueError(f"{key}.pass_criteria must be YES or NO, not {quoted(expected)}")
    return text if word == "yes" else f"The answer to this question is no: {text}"


def _require_yes_no_choices(given: Mapping[str, Any], key: str) -> None:
    """Refuse the choices of verifiers' criteria unless they are no and yes."""
    choices = given.get("choices")
    words = [str(one).lower() for one in choices] if isinstance(choices, list) else []
    if choices is not None and words != ["no", "yes"]:
        raise ValueError(
            f"{key}.choices must be no and yes: split a criterion with more grades into several"
        )


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


def _require_unambiguous_requirements(found: Sequence[NamedCriterion]) -> None:
    """Refuse `requires` with a name that several criteria have."""
    counts = Counter(one.name for one in found)
    for one in found:
        shared = sorted(name for name in {*one.spec.requires} if counts[name] > 1)
        if shared:
            raise ValueError(
                f"{one.key}.requires: several criteria have the names {quoted(shared)}: give each "
                "its own name"
            )


def _with_unique_names(found: Sequence[NamedCriterion], num_before: int) -> list[NamedCriterion]:
    """Name criteria that have no name, and number repeated names."""
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


def _with_gates(named: Sequence[NamedCriterion]) -> list[NamedCriterion]:
    """Make all criteria require those that must pass, the gates.

    The gates form a chain: each requires the one before it, and the last has the weight of all of
    them, so that one gate that is not met takes the weight of the others too.
    """
    gates = [one for one in named if one.must_pass]
    _require_gates_in_order(named, gates)
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


def _require_gates_in_order(
    named: Sequence[NamedCriterion], gates: Sequence[NamedCriterion]
) -> None:
    """Refuse a gate that requires a criterion which itself waits for that gate."""
    waiting = {one.name for one in named}
    for gate in gates:
        waiting.discard(gate.name)
        required = [name for name in dict.fromkeys(gate.spec.requires) if name in waiting]
        if required:
            raise ValueError(
                f"{gate.key}.requires names {quoted(required)}, which is a cycle: "
                f"{quoted(gate.name)} has the category `must_pass`, and each criterion waits for "
                "all of that category, these for the ones before them. Remove the names, or move "
                "their criteria before it and make them `must_pass` too"
            )


def _first_key(given: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Return the first of these keys that has a value."""
    return next((key for key in keys if given.get(key) is not None), None)
