"""`alarm record`: what a recipe's models score now, to be compared with from then on."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm_models.recipe_files import load_recipes, locate_recipe
from alarm_service.commands.options import (
    LOCAL,
    Subparsers,
    add_command,
    add_settings,
    settings_of,
)
from alarm_service.lines import require_other_file

__all__ = ["add_to"]


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "record", _run, "store samples with their scores, for a recipe's `parity`"
    )
    parser.add_argument(
        "file",
        type=Path,
        help="a JSON object a line: a sample as on the wire; or an earlier record; - reads "
        "standard input",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file that `parity` names")
    add_settings(parser, LOCAL)


def _run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    own = [locate_recipe(settings.recipe[0])]  # its parity file is what this writes
    require_other_file(options.out, own, "the recipe's own")
    # A wrong recipe is told before torch, which takes seconds, is imported.
    from alarm_service.recording import record_file

    return record_file(options.file, options.out, recipe, settings)
