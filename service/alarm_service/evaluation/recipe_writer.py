"""Writes a recipe file with new values, keeping its comments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from alarm_models.errors import RecipeError
from alarm_models.recipe.loader import (
    FOLDERS,
    load_recipe,
    locate_recipe,
    parse_setting,
    resolve_files,
    set_key,
)
from alarm_service.json_lines import write_whole

__all__ = ["Change", "write_recipe"]


@dataclass(frozen=True, slots=True)
class Change:
    """A key's new value, and the reason, which becomes a comment."""

    value: float
    reason: str


def write_recipe(
    source: str, settings: Iterable[str], changes: Mapping[str, Change], target: Path
) -> None:
    """Write a recipe, with ``--set`` settings and changes by dotted key, to a file.

    If the target is another file, the recipe takes its name, and relative paths are resolved. The
    parity check no longer compares rewards, which belong to other constants. Raises `RecipeError`
    and leaves the target unchanged if the source cannot be read or the result is not a valid
    recipe.
    """
    path = locate_recipe(source)
    try:
        document = tomlkit.parse(path.read_text("utf-8"))
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error
    for setting in settings:
        keys, value = parse_setting(setting)
        set_key(document, keys, value)
    if path.resolve() != target.resolve():
        _move(document, path.parent, target)
    for key, change in changes.items():
        value = tomlkit.item(change.value)
        value.comment(change.reason)
        set_key(document, key.split("."), value)
    if "parity" in document:
        document["parity_rewards"] = False
    _write_if_a_recipe(tomlkit.dumps(document), target)


def _move(document: tomlkit.TOMLDocument, folder: Path, target: Path) -> None:
    if "name" in document:
        document["name"] = target.stem
    if document.get("parity"):
        document["parity"] = str((folder / str(document["parity"])).resolve())
    if folder.resolve() == target.parent.resolve():
        return
    for model in document.get("models", {}).values():
        for key in FOLDERS & set(model):
            if str(model[key]).startswith(("./", "../")):
                model[key] = str((folder / str(model[key])).resolve())
        resolve_files(model, folder)


def _write_if_a_recipe(text: str, target: Path) -> None:
    real = Path(os.path.realpath(target))
    draft = real.with_name(f".{real.stem}.draft.toml")
    draft.write_text(text, encoding="utf-8")
    try:
        load_recipe(str(draft))
    finally:
        draft.unlink(missing_ok=True)
    write_whole(target, text)
