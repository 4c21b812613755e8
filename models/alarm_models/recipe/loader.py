"""Reads recipes from TOML files or by built-in name, with --set overrides."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from alarm_models.combination.overlong import OverlongSpec
from alarm_models.errors import RecipeError
from alarm_models.recipe.from_checkpoint import MODEL, SOURCE, recipe_of_checkpoint
from alarm_models.recipe.schema import AspectSpec, HierarchySpec, HolisticSpec, Recipe
from alarm_models.recipe.specs import KINDS

__all__ = [
    "FOLDERS",
    "built_in_names",
    "given_keys",
    "load_recipe",
    "load_recipe_again",
    "load_recipes",
    "locate_recipe",
    "parse_setting",
    "resolve_files",
    "set_key",
]

#: A model's keys that may name a folder beside the recipe's file.
FOLDERS = {key for spec in KINDS.values() for key in spec.folders}

#: The largest recipe file, and the longest text in a recipe or in a file that it names.
_MAX_FILE_BYTES = 1 << 20
_MAX_TEXT_CHARS = 128 << 10

#: Number of errors of a recipe that are reported, and number of characters of each.
_MAX_ERRORS = 5
_MAX_SHOWN = 300

#: Tables that affect rewards but not scores.
_CONSTANTS = {"holistic", "hierarchy", "aspects"}


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

    ``checkpoint:`` before a folder or hub id creates a recipe from that checkpoint's files.

    Each setting is ``KEY=VALUE`` and applies to every recipe that has the key's table. If it
    changes constants, stored rewards are no longer compared. Raises `RecipeError` that names the
    file and the key.
    """
    settings = list(settings)
    tables = [_read(name, settings) for name in names_or_files]
    for setting in settings:
        keys, _ = parse_setting(setting)
        has_table = [_set(table, setting) for table in tables]
        if not any(has_table):
            table_name = ".".join(keys[:-1])
            raise RecipeError(f"--set {_shown(setting)}: no recipe has a table {table_name!r}")
    recipes = [_checked(table) for table in tables]
    names = [recipe.name for recipe in recipes]
    if len(set(names)) < len(names):
        raise RecipeError(f"two recipes have the same name, set `name` in one: {names}")
    return recipes


def load_recipe_again(
    name_or_file: str, settings: Iterable[str], before: Recipe | None = None
) -> Recipe:
    """Read one of a server's recipes again; settings for tables that it lacks are ignored.

    ``before`` is the recipe as it was read last: a table of it that a setting names must still
    exist. Raises `RecipeError`.
    """
    settings = list(settings)
    table = _read(name_or_file, settings)
    known = {} if before is None else before.model_dump(include={"models", "aspects"})
    for setting in settings:
        keys, _ = parse_setting(setting)
        if not _set(table, setting) and _has_table(known, keys):
            raise RecipeError(f"--set {_shown(setting)}: {name_or_file!r} no longer has this table")
    return _checked(table)


def locate_recipe(name_or_file: str) -> Path:
    """Return the file of a built-in recipe, or the named file, whether it exists or not."""
    if name_or_file in built_in_names():
        return Path(str(resources.files("alarm_models") / "recipes" / f"{name_or_file}.toml"))
    return Path(name_or_file).expanduser()


def given_keys(settings: Iterable[str]) -> dict[str, Any]:
    """Return the keys that settings set for the model of a recipe created from a checkpoint."""
    parsed = [parse_setting(setting) for setting in settings]
    return {keys[2]: value for keys, value in parsed if keys[:-1] == ["models", MODEL]}


def _read(name_or_file: str, settings: Iterable[str]) -> dict[str, Any]:
    if name_or_file.startswith(SOURCE):
        checkpoint = name_or_file.removeprefix(SOURCE)
        return _copied(recipe_of_checkpoint(checkpoint, given_keys(settings)).table)
    path = locate_recipe(name_or_file)
    try:
        table = tomllib.loads(_read_text(path, _MAX_FILE_BYTES))
    except OSError as error:
        raise RecipeError(
            f"{name_or_file[:_MAX_SHOWN]!r} is neither a built-in recipe "
            f"({', '.join(built_in_names())}) nor a file that can be read: {error.strerror}"
        ) from error
    except RecursionError as error:
        raise RecipeError(f"{path} is not valid TOML: it is nested too deeply") from error
    except ValueError as error:  # TOML, UTF-8 or the digits of a number
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    table.setdefault("name", path.stem)
    if isinstance(table.get("parity"), str) and table["parity"]:
        table["parity"] = str(path.parent.resolve() / table["parity"])
    for model in _models(table):
        _resolve_folders(model, FOLDERS, path)
        endpoint = model.get("endpoint")
        if isinstance(endpoint, dict):
            _resolve_folders(endpoint, {"cache"}, path)
        resolve_files(model, path.parent)
    return table


def _resolve_folders(table: dict[str, Any], keys: set[str], path: Path) -> None:
    """Make relative folders absolute, which begin beside the recipe's file."""
    for key in keys & set(table):
        folder = table[key]
        if isinstance(folder, str) and folder.startswith(("./", "../")):
            table[key] = str((path.parent / folder).resolve())


def _read_text(path: Path, max_bytes: int) -> str:
    """Read a file; raise `ValueError` if it is larger than ``max_bytes``."""
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return content.decode("utf-8")


def resolve_files(model: MutableMapping[str, Any], folder: Path) -> None:
    """Make the names of a model's files absolute, which are relative to the recipe's folder."""
    for key, is_file in (("chat_template", _is_template_file), ("criteria", _is_rubric_file)):
        if is_file(model.get(key)):
            model[key] = str((folder / model[key]).resolve())


def _is_template_file(value: object) -> TypeGuard[str]:
    """Say whether a `chat_template` names a file rather than containing the text."""
    return isinstance(value, str) and value.endswith(".jinja") and "{" not in value


def _is_rubric_file(value: object) -> TypeGuard[str]:
    """Say whether a rubric's `criteria` name a file rather than containing the criteria."""
    return isinstance(value, str) and value.endswith((".json", ".toml"))


def _models(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = table.get("models", {})
    return [
        model
        for model in (models.values() if isinstance(models, dict) else ())
        if isinstance(model, dict)
    ]


def _read_named_files(table: Mapping[str, Any]) -> None:
    """Replace the names of files of chat templates and rubrics by their contents."""
    for model in _models(table):
        template, criteria = model.get("chat_template"), model.get("criteria")
        if _is_template_file(template):
            with _naming_file(table, "chat_template", template):
                model["chat_template"] = _read_text(
                    Path(template).expanduser(), 4 * _MAX_TEXT_CHARS
                )
        if _is_rubric_file(criteria):
            with _naming_file(table, "criteria", criteria):
                model["criteria"] = _read_rubric_file(Path(criteria).expanduser())


def _read_rubric_file(file: Path) -> Any:
    text = _read_text(file, _MAX_FILE_BYTES).removeprefix("\ufeff")
    criteria = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    if not criteria:
        raise ValueError("it has no criteria")
    return criteria


@contextmanager
def _naming_file(table: Mapping[str, Any], key: str, file: str) -> Iterator[None]:
    """Raise `RecipeError`, which names the key and the file, if the file cannot be read."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # a RecursionError too
        raise RecipeError(
            f"recipe {table.get('name')!r}: {key} names {file[:_MAX_SHOWN]}, which cannot be read: "
            f"{_short(str(error))}"
        ) from error


def _copied(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy that can be changed without changing the table of families."""
    return {key: _copied(one) if isinstance(one, Mapping) else one for key, one in table.items()}


def _checked(table: Mapping[str, Any]) -> Recipe:
    _read_named_files(table)
    name = _short(repr(table.get("name")))
    for key, text in _texts(table):
        if len(text) > _MAX_TEXT_CHARS:
            raise RecipeError(
                f"recipe {name}: {_short(key)} has {len(text)} characters; the limit is "
                f"{_MAX_TEXT_CHARS}"
            )
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        lines = [_line_of(one) for one in errors[:_MAX_ERRORS]]
        if len(errors) > _MAX_ERRORS:
            lines.append(f"and {len(errors) - _MAX_ERRORS} more")
        raise RecipeError(f"recipe {name}: {'; '.join(lines)}") from error


def _line_of(error: ErrorDetails) -> str:
    """Return a validation error as a dotted key, as `--set` takes it, and what is wrong with it."""
    keys = [str(one) for one in error["loc"]]
    if keys[-1:] in (["str"], ["int"]) and len(keys) > 2:  # pydantic adds the types of a union
        del keys[-1]
    message = error["msg"].removeprefix("Value error, ")
    table: type[BaseModel] | None = None
    match keys:
        case ["models", _] if error["type"] == "union_tag_not_found":
            keys, message = [*keys, "kind"], "Field required"
        case ["models", _] if error["type"] == "union_tag_invalid":
            keys, message = [*keys, "kind"], _unknown_kind(str(error["ctx"]["tag"]))
        case ["models", name, kind, *rest] if kind in KINDS:  # pydantic adds the kind
            keys, table = ["models", name, *rest], KINDS[kind] if len(rest) == 1 else None
        case ["holistic", _]:
            table = HolisticSpec
        case ["hierarchy", _]:
            table = HierarchySpec
        case ["aspects", _, _]:
            table = AspectSpec
        case ["overlong", _]:
            table = OverlongSpec
        case [_]:
            table = Recipe
    if error["type"] == "extra_forbidden" and table is not None:
        similar = get_close_matches(keys[-1], table.model_fields, 1)
        message += "".join(f": did you mean `{one}`?" for one in similar)
    return f"{_short('.'.join(keys))}: {_short(message)}" if keys else _short(message)


def _unknown_kind(kind: str) -> str:
    similar = get_close_matches(kind, KINDS, 1)
    others = f"did you mean `{similar[0]}`?" if similar else f"the kinds are {', '.join(KINDS)}"
    return f"there is no kind {_short(kind)!r}: {others}"


def _texts(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a recipe, each with its dotted key."""
    stack: list[tuple[str, Any]] = [("", table)]
    while stack:
        key, value = stack.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, Mapping):
            stack.extend((f"{key}.{name}".lstrip("."), one) for name, one in value.items())
        elif isinstance(value, list):
            stack.extend((f"{key}.{at}", one) for at, one in enumerate(value))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def parse_setting(setting: str) -> tuple[list[str], Any]:
    """Split ``KEY=VALUE`` into the key's parts and a TOML value, or the text if it is not TOML.

    Raises `RecipeError`, whose message never contains a server's key.
    """
    key, equals, text = setting.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        shown = repr(f"{key}=..." if equals else key.split(" ")[0])
        if not equals and "." not in key:  # the rest of a value that contains a separator
            shown = f"{len(key)} characters without `=`"
        raise RecipeError(
            f"--set requires KEY=VALUE with a dotted key, got {shown} (settings in ALARM_SET are "
            "separated by `;`)"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return keys, text
    if keys[-1] == "api_key" and not isinstance(value, str):
        return keys, text  # a key of digits is not a number
    return keys, value if isinstance(value, bool | int | float | str | list | dict) else text


def _shown(setting: str) -> str:
    """Return a setting, without its value if that may be secret, such as a key or a URL."""
    key, _, _ = setting.partition("=")
    is_secret = any(one in key.lower() for one in ("key", "url", "token", "secret", "password"))
    return f"{key}=..." if is_secret else setting


def _set(table: MutableMapping[str, Any], setting: str) -> bool:
    """Set a key if the recipe has its table; say whether it has."""
    keys, value = parse_setting(setting)
    if not _has_table(table, keys):
        return False
    set_key(table, keys, value)
    if keys[0] in _CONSTANTS:
        table["parity_rewards"] = False
    return True


def _has_table(table: Mapping[str, Any], keys: list[str]) -> bool:
    # Every recipe has holistic and hierarchy, written or not; models and aspects must be written,
    # but not the tables in them, such as a judge's endpoint.
    if len(keys) < 3:
        return True
    tables = table.get(keys[0])
    return isinstance(tables, Mapping) and keys[1] in tables


def set_key(table: MutableMapping[str, Any], keys: Sequence[str], value: object) -> None:
    """Set a key by its path; missing tables on the path are created.

    Raises `RecipeError` if something other than a table is on the path.
    """
    for at, key in enumerate(keys[:-1], 1):
        table = table.setdefault(key, {})
        if not isinstance(table, MutableMapping):
            raise RecipeError(
                f"{'.'.join(keys)} cannot be set: {'.'.join(keys[:at])} is not a table"
            )
    table[keys[-1]] = value
