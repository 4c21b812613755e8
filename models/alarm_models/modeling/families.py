"""Known families of reward models and their recipe keys, from the table families.toml."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from alarm_models.modeling.inspection import CheckpointFacts

__all__ = [
    "Family",
    "families",
    "families_by_name",
    "is_stock_class",
    "match_family",
    "recipe_lines",
    "toml_value",
]


@dataclass(frozen=True, slots=True)
class Family:
    """A row of the table: conditions, and recipe keys or a refusal."""

    name: str
    architectures: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    prefix: str | None = None
    num_labels: int | None = None
    chat_template: bool | None = None
    stock: bool | None = None
    ranker: bool | None = None
    reward_token: str | None = None
    added_tokens: tuple[str, ...] = ()
    several_labels: bool | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    advice: str | None = None
    note: str | None = None
    unverified: str | None = None
    test: str | None = None
    examples: tuple[str, ...] = ()
    license: str | None = None

    def matches(self, facts: CheckpointFacts, checkpoint: str) -> bool:
        """Return whether a checkpoint, with its hub id or folder, meets all conditions."""
        first = facts.architectures[0] if facts.architectures else ""
        return (
            _meets(self.architectures, first)
            and (not self.names or self._is_named(facts, checkpoint))
            and _meets(self.model_types, facts.model_type or "")
            and set(self.tensors) <= set(facts.tensors)
            and set(self.labels) <= facts.label_names
            and self.prefix in (None, facts.base_prefix)
            and self.several_labels in (None, (facts.num_labels or 0) > 1)
            and self.num_labels in (None, facts.num_outputs)
            and self.chat_template in (None, facts.chat_template is not None)
            and (self.stock is None or self.stock == is_stock_class(first))
            and self.ranker in (None, "ranker_type" in facts.config)
            and self.reward_token in (None, facts.reward_token)
            and (not self.added_tokens or set(self.added_tokens) <= facts.added_tokens)
        )

    def _is_named(self, facts: CheckpointFacts, checkpoint: str) -> bool:
        """Return whether the hub id, folder or card has one of the names.

        A pattern without ``/`` applies to the last part of a name, so that a folder above the
        checkpoint's does not count. The configuration's ``_name_or_path`` counts except for
        families with `examples`, since a checkpoint may have been trained from one of these.
        """
        names = [checkpoint.partition("@")[0], *facts.names]
        if not self.examples:
            names.append(str(facts.config.get("_name_or_path") or ""))
        parts = [_plain(name).rstrip("/").split("/")[-2:] for name in names]
        return any(
            fnmatchcase("/".join(one if "/" in pattern else one[-1:]), pattern)
            for pattern in self.names
            for one in parts
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _meets(patterns: tuple[str, ...], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@cache
def families() -> tuple[Family, ...]:
    """Return the table's rows in order."""
    text = (resources.files("alarm_models.modeling") / "families.toml").read_text("utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)["families"]
    return tuple(_family(row) for row in rows)


def _family(row: Mapping[str, Any]) -> Family:
    keys: dict[str, Any] = {
        key: tuple(one) if isinstance(one, list) else one for key, one in row.items()
    }
    return Family(**keys)


def match_family(facts: CheckpointFacts, checkpoint: str = "") -> Family | None:
    """Return the first family that matches a checkpoint; None if there is none."""
    return next((one for one in families() if one.matches(facts, checkpoint)), None)


def families_by_name(facts: CheckpointFacts) -> list[Family]:
    """Return the families with recipes that a checkpoint would match if it had their names."""
    nameless = (replace(one, names=()) for one in families() if one.names and one.recipe)
    return [one for one in nameless if one.matches(facts, "")]


#: The longest text of a recipe key that a line or a table shows in full, and what it else shows.
_MAX_SHOWN, _NUM_SHOWN = 500, 60


def recipe_lines(keys: Mapping[str, Any]) -> str:
    """Format recipe keys as TOML on one line: ``head = "score"``, ...; long texts are shortened."""
    return ", ".join(f"{key} = {toml_value(_shortened(one))}" for key, one in keys.items())


def _shortened(value: Any) -> Any:
    is_long = isinstance(value, str) and len(value) > _MAX_SHOWN
    return f"{value[:_NUM_SHOWN]}…" if is_long else value


def toml_value(value: Any) -> str:
    """Format a value as TOML; tables are inline."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    # TOML strings, numbers and booleans are written as in JSON, except for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def is_stock_class(name: str) -> bool:
    """Return whether transformers has a class of that name."""
    import transformers  # slow to import, and not needed to read the table

    return name.isidentifier() and hasattr(transformers, name)
