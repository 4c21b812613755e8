"""Flags of the commands that make studies, and what they mean."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alarm_models.recipe import Recipe
from alarm_models.recipe_files import load_recipes
from alarm_service.commands.options import LOCAL, add_settings, settings_of
from alarm_service.lines import require_other_file, require_writable

if TYPE_CHECKING:
    from alarm_models.study.bootstrap import Resampling
    from alarm_service.settings import Settings
    from alarm_service.study.report import Outputs

__all__ = [
    "Source",
    "add_outputs",
    "add_resampling",
    "add_scoring",
    "files_of",
    "not_negative",
    "number_within",
    "outputs_of",
    "positive",
    "resampling_of",
    "source_of",
]

# Numpy and torch are imported where a command runs: its help need not wait for them.


@dataclass(frozen=True, slots=True)
class Source:
    """Where scores come from: a recipe, by settings on this machine or from a server."""

    recipe: Recipe
    settings: Settings
    url: str | None


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a recipe and of what runs it."""
    add_settings(parser, (*LOCAL, "api_key"))
    parser.add_argument(
        "--url", help="score at this server, which serves the recipe, rather than in this process"
    )


def source_of(options: argparse.Namespace) -> Source:
    """Read the recipe; raise `RecipeError` or pydantic's ``ValidationError``."""
    settings = settings_of(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    return Source(recipe, settings, options.url)


def add_resampling(parser: argparse.ArgumentParser) -> None:
    """Add the flags of chance."""
    parser.add_argument(
        "--draws", type=positive, default=2000, metavar="N",
        help="bootstrap draws that an interval is made of [2000]",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="the seed of all chance [0]"
    )
    parser.add_argument(
        "--sample", type=positive, metavar="N", help="draw this many prompts, else take all"
    )


def resampling_of(options: argparse.Namespace) -> Resampling:
    """Return how intervals are made."""
    from alarm_models.study.bootstrap import Resampling

    return Resampling(num_draws=options.draws, seed=options.seed)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is shown and kept."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write report.html, result.json and plots there"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON rather than as tables"
    )


def outputs_of(
    options: argparse.Namespace, inputs: Iterable[str | Path], written: Path | None = None
) -> Outputs:
    """Return where results go; raise `AlarmModelsError` where they could not be made.

    ``inputs`` are the files to be read, as ``NAME=FILE`` or alone, and ``written`` is one more that
    will be written: neither it nor a report may be one of them.
    """
    from alarm_service.study.report import Outputs

    files = files_of(inputs)
    require_writable(written)
    require_other_file(written, files, "one of the files to be read")
    outputs = Outputs(options.out, options.json)
    outputs.check(files)
    return outputs


def files_of(arguments: Iterable[str | Path]) -> list[Path]:
    """Return the files that are named, as ``NAME=FILE`` or alone."""
    return [Path(str(one).partition("=")[2] if "=" in str(one) else one) for one in arguments]


def positive(text: str) -> int:
    """Read a whole number of 1 or more."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Read a whole number of 0 or more."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"wants a whole number of {least} or more, not {text!r}")
    return number


def number_within(text: str, least: float, most: float) -> float:
    """Read a number between two others, which it may not be."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least < number < most:
        bounds = f"above {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise argparse.ArgumentTypeError(f"wants a number {bounds}, not {text!r}")
    return number
