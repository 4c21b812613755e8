"""`alarm score`: a file of samples rewarded without a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from alarm_models.recipe_files import load_recipes
from alarm_service.commands.options import (
    LOCAL,
    Subparsers,
    add_command,
    add_settings,
    recipe_files,
    settings_of,
)
from alarm_service.lines import require_other_file

__all__ = ["add_to"]


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "score", _run, "reward a file of samples, without a server")
    parser.add_argument(
        "file",
        type=Path,
        help="a JSON object a line: a sample as on the wire; - reads standard input",
    )
    parser.add_argument(
        "--out", type=Path, help="written once all is scored, so that it may be the same file; "
        "else standard output",
    )  # fmt: skip
    add_settings(parser, LOCAL)


def _run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    require_other_file(options.out, recipe_files(settings.recipe[0], recipe), "the recipe's own")
    # A wrong recipe is told before torch, which takes seconds, is imported.
    from alarm_service.scoring import score_file

    return score_file(options.file, options.out, recipe, settings)
