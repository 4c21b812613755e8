"""Flags that several commands share, and how they become settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from alarm_models.recipe import Recipe
from alarm_models.recipe_files import locate_recipe
from alarm_service.settings import Settings

__all__ = [
    "LOCAL",
    "Subparsers",
    "add_command",
    "add_settings",
    "recipe_files",
    "settings_of",
]

#: What commands are added to.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: The settings that a command without a server has.
LOCAL = ("recipe", "set", "device", "deterministic", "max_batch_tokens")


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a command; ``description`` keeps its lines, for formats of files."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these settings."""
    for name in names:
        field = Settings.model_fields[name]
        flag = f"--{name.replace('_', '-')}"
        text = f"{field.description or ''} [ALARM_{name.upper()}; {_shown(field.default)}]"
        text = text.replace("%", "%%").strip()
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help=text)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, action="append", metavar="VALUE", help=text)
        else:
            parser.add_argument(flag, metavar="VALUE", help=text)


def settings_of(options: argparse.Namespace) -> Settings:
    """Make settings of the flags that were given; variables and defaults fill the rest."""
    given = vars(options).items()
    return Settings(
        **{name: one for name, one in given if name in Settings.model_fields and one is not None}
    )


def recipe_files(source: str, recipe: Recipe) -> list[Path]:
    """Return the files that a recipe is in, which a command must not write over."""
    parity = [] if recipe.parity is None else [Path(recipe.parity)]
    return [locate_recipe(source), *parity]


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)
