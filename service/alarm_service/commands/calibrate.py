"""`alarm calibrate`: a recipe's constants from a policy's own completions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alarm_service.commands.options import Subparsers, add_command
from alarm_service.commands.study_options import (
    add_outputs,
    add_scoring,
    number_within,
    outputs_of,
    source_of,
)

__all__ = ["add_to"]

_DESCRIPTION = """\
Find the constants of a recipe on completions of the policy that training starts from: the
holistic mean and standard deviation, and a threshold that admits a wanted share. Shows what each
aspect would add past it, and says where that is a bonus for length.

FILE has a JSON object a line, a sample or a prompt with its completions:
  {"prompt": "...", "completion": "..."}
  {"prompt": "...", "completions": ["...", "..."]}
both with "fields" {"question": "..."} where the recipe's templates name some
"""


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "calibrate", _run, "find a recipe's mean, std and threshold", _DESCRIPTION
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--admit", type=_share, default=0.27, metavar="SHARE",
        help="the share of completions past the threshold [0.27, as z >= 0.6 of a normal]",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="write the recipe with the constants found"
    )
    add_outputs(parser)
    add_scoring(parser)


def _run(options: argparse.Namespace) -> int:
    source = source_of(options)
    outputs = outputs_of(options, [options.file], options.write)
    from alarm_service.study.calibrating import calibrate, changes_of
    from alarm_service.study.calibration_page import calibration_page
    from alarm_service.study.files import read_groups
    from alarm_service.study.recipe_writing import write_recipe
    from alarm_service.study.scores import score_all

    material = read_groups(Path(options.file))
    scores = score_all(material.samples, source.recipe, source.settings, source.url)
    result = calibrate(material, source.recipe, scores, options.admit)
    outputs.give(calibration_page(result), result)
    if options.write is not None:
        settings = source.settings
        changes = changes_of(result, source.recipe)
        write_recipe(settings.recipe[0], settings.set, changes, options.write)
        sys.stderr.write(f"recipe: {options.write}\n")
    return 0


def _share(text: str) -> float:
    return number_within(text, 0, 1)
