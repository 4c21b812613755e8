"""Where a server's recipes are read from, and which others may be named at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from alarm_models.errors import quoted
from alarm_models.recipe import Recipe
from alarm_models.recipe_files import built_in_names, load_recipe_again
from alarm_service.errors import NotFound, Refused
from alarm_service.settings import SettingsError

__all__ = ["RecipeSources"]


class RecipeSources:
    """Finds recipes by name and reads them, ``--set`` settings applied.

    A name is looked up among those that there are, built in or in the operator's folder; it never
    becomes a path. ``known`` says where the recipes are from that are served already.
    """

    def __init__(
        self, known: Mapping[str, str], settings: Sequence[str], folder: Path | None
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise SettingsError(f"--recipe-dir {folder} is no folder")
        self._known = dict(known)
        self._settings = settings
        self._folder = folder

    def available(self) -> dict[str, str]:
        """Return what may be loaded: each name, and where it is."""
        files = [] if self._folder is None else sorted(self._folder.glob("*.toml"))
        return {name: name for name in built_in_names()} | {file.stem: str(file) for file in files}

    def find(self, name: str) -> str:
        """Return where an available recipe is; raise `NotFound` for another, or `Refused`."""
        available = self.available()
        if name not in available:
            more = "" if self._folder else "; --recipe-dir FOLDER adds a folder's"
            raise NotFound(
                f"no recipe {quoted(name)} to load: there are {', '.join(available)}{more}"
            )
        if name in built_in_names() and available[name] != name:
            raise Refused(f"{name!r} is built in and in {self._folder}: rename that file")
        return available[name]

    def read(self, source: str) -> Recipe:
        """Read a recipe from where it was found; raise `RecipeError`."""
        return load_recipe_again(source, self._settings)

    def note(self, recipe: Recipe, source: str) -> None:
        """Note where a recipe is from that is served now."""
        self._known[recipe.name] = source

    def read_again(self, recipe: Recipe) -> Recipe:
        """Read a recipe's file again; one that came from no file is as it is.

        Raises `RecipeError`, and `Refused` where the recipe has another name now.
        """
        source = self._known.get(recipe.name)
        if source is None:
            return recipe
        again = load_recipe_again(source, self._settings, recipe)
        if again.name != recipe.name:
            raise Refused(
                f"{source} now names its recipe {again.name!r}, but callers know it as "
                f"{recipe.name!r}: load the new name, and unload the old"
            )
        return again
