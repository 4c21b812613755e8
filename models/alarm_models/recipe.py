"""The story of one reward: a holistic model, its aspects and a rule, read from a TOML file."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from alarm_models.assembly import AspectRule
from alarm_models.errors import RecipeError
from alarm_models.hierarchy import Hierarchy, Rule
from alarm_models.shaping import Shaping
from alarm_models.specs import ModelSpec
from alarm_models.template import FieldPattern

__all__ = ["AspectSpec", "Overrides", "Recipe", "built_in_names", "load_recipe", "load_recipes"]

Finite = Field(allow_inf_nan=False)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HolisticSpec(_Table):
    """The model that judges whole completions, and the constants that normalise its score."""

    model: str
    weight: float = 1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class HierarchySpec(_Table):
    """The rule of combination; the threshold counts in standard deviations."""

    rule: Rule = Rule.HIERARCHICAL
    threshold: float = 0.0


class AspectSpec(_Table):
    """A model's place in the reward: its weight, its shaping, and what maps scores to rewards."""

    model: str
    weight: float = 1.0
    shaping: Shaping = Shaping.SIGMOID
    positive: float = 1.0
    negative: float = -1.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    scale: float = 1.0
    bias: float = 0.0

    def rule(self, shaping: Shaping | None) -> AspectRule:
        """Return how this aspect's scores become rewards; ``shaping`` overrides its own."""
        return AspectRule(
            self.positive,
            self.negative,
            self.mean,
            self.std,
            self.scale,
            self.bias,
            shaping or self.shaping,
        )


class Overrides(_Table):
    """What one request may change of a recipe."""

    rule: Rule | None = None
    threshold: float | None = None
    holistic_weight: float | None = None
    weights: Mapping[str, float] = Field(default_factory=dict)
    shaping: Shaping | None = None


class Recipe(_Table):
    """One holistic model, its aspects and a rule."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    description: str = ""
    models: Mapping[str, ModelSpec]
    holistic: HolisticSpec
    hierarchy: HierarchySpec = HierarchySpec()
    aspects: Mapping[str, AspectSpec] = Field(default_factory=dict)
    fields: Mapping[str, str] = Field(
        default_factory=dict,
        description="field name -> pattern that finds it in the prompt when a caller leaves it out",
    )

    @model_validator(mode="after")
    def _models_exist(self) -> Recipe:
        named = {"holistic.model": self.holistic.model}
        named |= {f"aspects.{name}.model": aspect.model for name, aspect in self.aspects.items()}
        for key, model in named.items():
            if model not in self.models:
                raise ValueError(f"{key} is {model!r}, but the models are {sorted(self.models)}")
        if self.models[self.holistic.model].kind == "segments":
            raise ValueError(f"holistic.model {self.holistic.model!r} judges segments, not wholes")
        return self

    @property
    def field_patterns(self) -> dict[str, FieldPattern]:
        """The patterns that find fields in prompts."""
        return {name: FieldPattern(pattern) for name, pattern in self.fields.items()}

    def hierarchy_with(self, overrides: Overrides) -> Hierarchy:
        """Return the rule with its constants; raise `RecipeError` for a weight of no aspect."""
        unknown = sorted(set(overrides.weights) - set(self.aspects))
        if unknown:
            raise RecipeError(
                f"overrides.weights names {unknown}; recipe {self.name!r} has the aspects "
                f"{sorted(self.aspects)}"
            )
        own = {name: aspect.weight for name, aspect in self.aspects.items()}
        threshold, weight = overrides.threshold, overrides.holistic_weight
        return Hierarchy(
            rule=overrides.rule or self.hierarchy.rule,
            threshold=self.hierarchy.threshold if threshold is None else threshold,
            holistic_weight=self.holistic.weight if weight is None else weight,
            mean=self.holistic.mean,
            std=self.holistic.std,
            weights=own | dict(overrides.weights),
        )

    def fingerprint(self, models: Mapping[str, str], overrides: Overrides) -> str:
        """Digest the models' fingerprints and all constants, overrides included."""
        constants = self.model_dump_json(include={"holistic", "hierarchy", "aspects"})
        parts = f"{sorted(models.items())}|{constants}|{overrides.model_dump_json()}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


def built_in_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("alarm_models") / "recipes"
    return sorted(
        item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")
    )


def load_recipe(name_or_file: str, settings: Iterable[str] = ()) -> Recipe:
    """Read one recipe; see `load_recipes`."""
    return load_recipes([name_or_file], settings)[0]


def load_recipes(names_or_files: Iterable[str], settings: Iterable[str] = ()) -> list[Recipe]:
    """Read recipes by built-in name or file, and set keys by their dotted names.

    Each setting is ``KEY=VALUE`` and counts for every recipe that has the key's table. Raises
    `RecipeError`, naming file and key.
    """
    tables = [_read(name) for name in names_or_files]
    for setting in settings:
        keys, value = _parse_setting(setting)
        known = [table for table in tables if _has_table(table, keys)]
        if not known:
            raise RecipeError(f"--set {setting}: no recipe has a table {'.'.join(keys[:-1])!r}")
        for table in known:
            _set(table, keys, value)
    recipes = [_checked(table) for table in tables]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"two recipes have one name: {names}")
    return recipes


def _read(name_or_file: str) -> dict[str, Any]:
    if name_or_file in built_in_names():
        path = Path(str(resources.files("alarm_models") / "recipes" / f"{name_or_file}.toml"))
    else:
        path = Path(name_or_file).expanduser()
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(
            f"{name_or_file!r} is neither a built-in recipe ({', '.join(built_in_names())}) "
            f"nor a file that can be read: {error.strerror}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}") from error
    table.setdefault("name", path.stem)
    for model in table.get("models", {}).values():
        checkpoint = model.get("checkpoint", "") if isinstance(model, dict) else ""
        if isinstance(checkpoint, str) and checkpoint.startswith(("./", "../")):
            model["checkpoint"] = str((path.parent / checkpoint).resolve())
    return table


def _checked(table: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in one['loc']) or 'recipe'}: {one['msg']}"
            for one in error.errors()
        ]
        raise RecipeError(f"recipe {table.get('name')!r}: {'; '.join(lines)}") from error


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    key, equals, text = setting.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set wants KEY=VALUE with a dotted key, not {setting!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, text
    return keys, value if isinstance(value, bool | int | float | str | list) else text


def _has_table(table: Mapping[str, Any], keys: list[str]) -> bool:
    # holistic and hierarchy are every recipe's, written out or not; a model or an aspect is not.
    return len(keys) < 3 or (len(keys) == 3 and keys[1] in table.get(keys[0], {}))


def _set(table: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    table[keys[-1]] = value
