"""Flags that commands share, and their conversion to settings."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from alarm_models.recipe.loader import load_recipes, locate_recipe
from alarm_models.recipe.schema import Recipe
from alarm_service.errors import format_validation_errors
from alarm_service.json_lines import require_other_file, require_writable
from alarm_service.settings import Settings, SettingsError, flag_of, with_models

if TYPE_CHECKING:
    from alarm_models.study.bootstrap import Resampling
    from alarm_service.evaluation.report import Outputs
    from alarm_service.settings import Settings

__all__ = [
    "LOCAL",
    "Source",
    "Subparsers",
    "add_command",
    "add_outputs",
    "add_resampling",
    "add_scoring",
    "add_settings",
    "files_of",
    "not_negative",
    "number_within",
    "one_recipe",
    "outputs_of",
    "positive",
    "recipe_files",
    "resampling_of",
    "settings_of",
    "source_of",
]

#: The subparsers that commands are added to.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

#: The settings of commands that run without a server.
LOCAL = ("recipe", "set", "device", "deterministic", "max_batch_tokens", "max_sample_chars")


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str = "",
) -> argparse.ArgumentParser:
    """Add a command; ``description`` keeps its line breaks, to show file formats."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description or summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these settings; only `alarm serve`, which has all, takes recipes."""
    for name in names:
        field = Settings.model_fields[name]
        flag = flag_of(name)
        text = field.description or ""
        variable = f"env ALARM_{name.upper()}"
        if isinstance(field.default, tuple) and (name != "recipe" or "port" in names):
            text, variable = f"{text}; repeatable", f"{variable}, separated by `;`"
        text = f"{text} [{variable}; default {_shown(field.default)}]"
        text = text.replace("%", "%%").strip()
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", default=None, help=text)
        elif isinstance(field.default, tuple):
            parser.add_argument(flag, action="append", metavar="VALUE", help=text)
        else:
            parser.add_argument(flag, metavar="VALUE", help=text)


def settings_of(options: argparse.Namespace) -> Settings:
    """Build settings from the flags given; variables and defaults fill in the rest.

    Raises `SettingsError`, which names the flags or variables of wrong values.
    """
    given = {
        name: one
        for name, one in vars(options).items()
        if name in Settings.model_fields and one is not None
    }
    try:
        return with_models(Settings(**given))
    except ValidationError as error:
        faults = [
            {
                **fault,
                "loc": (_source(str(fault["loc"][0]), given), *fault["loc"][1:]),
                "input": _number_or_given(fault["input"]),
            }
            for fault in error.errors()
        ]
        raise SettingsError(format_validation_errors(faults)) from error


def _number_or_given(value: object) -> object:
    """Return the number that a flag's text is, which messages quote, or else what was given."""
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
        with suppress(ValueError):
            return float(value)
    return value


def one_recipe(settings: Settings) -> Recipe:
    """Load the recipe of a command that uses one; raise `SettingsError` where several are named."""
    if len(settings.recipe) > 1:
        raise SettingsError(
            f"--recipe or ALARM_RECIPE: {len(settings.recipe)} recipes are given, but this command "
            "uses one"
        )
    (recipe,) = load_recipes(settings.recipe, settings.set)
    return recipe


def recipe_files(source: str, recipe: Recipe) -> list[Path]:
    """Return the files of a recipe, which a command must not overwrite."""
    parity = [] if recipe.parity is None else [Path(recipe.parity)]
    return [locate_recipe(source), *parity]


def _source(name: str, given: Mapping[str, object]) -> str:
    return flag_of(name) if name in given else f"ALARM_{name.upper()}"


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


# numpy and torch are imported when a command runs, so that --help stays fast.


@dataclass(frozen=True, slots=True)
class Source:
    """Where scores come from: a recipe, scored in this process or by a server."""

    recipe: Recipe
    settings: Settings
    url: str | None


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name a recipe and configure how it is run."""
    add_settings(parser, (*LOCAL, "api_key"))
    parser.add_argument(
        "--url", help="score with this server, which serves the recipe, instead of in this process"
    )


def source_of(options: argparse.Namespace) -> Source:
    """Read the recipe; raise `RecipeError` or pydantic's ``ValidationError``."""
    settings = settings_of(options)
    return Source(one_recipe(settings), settings, options.url)


def add_resampling(parser: argparse.ArgumentParser) -> None:
    """Add the flags of random sampling."""
    parser.add_argument(
        "--draws", type=positive, default=2000, metavar="N",
        help="bootstrap draws per confidence interval [default 2000]",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="random seed [default 0]"
    )
    parser.add_argument(
        "--sample",
        type=positive,
        metavar="N",
        help="use a random sample of N prompts instead of all",
    )


def resampling_of(options: argparse.Namespace) -> Resampling:
    """Return the bootstrap settings of confidence intervals."""
    from alarm_models.study.bootstrap import Resampling

    return Resampling(num_draws=options.draws, seed=options.seed)


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the output flags."""
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write report.html, report.md, result.json and plots to this folder",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON instead of tables"
    )


def outputs_of(
    options: argparse.Namespace, inputs: Iterable[str | Path], written: Path | None = None
) -> Outputs:
    """Return where results are written; raise `AlarmModelsError` if they cannot be written there.

    ``inputs`` are the files to be read, as ``NAME=FILE`` or a path, and ``written`` is a further
    output file: neither it nor a report may overwrite an input.
    """
    from alarm_service.evaluation.report import Outputs

    files = files_of(inputs)
    require_writable(written)
    require_other_file(written, files, "one of the files to be read")
    outputs = Outputs(options.out, options.json)
    outputs.check(files)
    return outputs


def files_of(arguments: Iterable[str | Path]) -> list[Path]:
    """Return the files named as ``NAME=FILE`` or by their path."""
    return [Path(str(one).partition("=")[2] if "=" in str(one) else one) for one in arguments]


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Parse an integer of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {least}, got {text!r}")
    return number


def number_within(text: str, least: float, most: float) -> float:
    """Parse a number strictly between two bounds."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least < number < most:
        bounds = f"above {least:g}" if most == math.inf else f"between {least:g} and {most:g}"
        raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text!r}")
    return number
