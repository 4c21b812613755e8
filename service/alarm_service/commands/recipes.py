"""`alarm recipes`: the built-in recipes in a table."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from alarm_models.recipe_files import built_in_names, load_recipe
from alarm_service.commands.options import Subparsers, add_command

__all__ = ["add_to"]


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    add_command(commands, "recipes", _run, "list the built-in recipes")


def _run(_: argparse.Namespace) -> int:
    table = Table("recipe", "holistic", "aspects (weight)", "rule", "description")
    for name in built_in_names():
        recipe = load_recipe(name)
        aspects = [f"{one} ({aspect.weight:g})" for one, aspect in recipe.aspects.items()]
        table.add_row(
            name,
            recipe.holistic.model,
            ", ".join(aspects),
            recipe.hierarchy.rule.value,
            recipe.description,
        )
    Console().print(table)
    return 0
