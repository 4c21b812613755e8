"""The `alarm` command: serve, score, recipes, health."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from alarm_models.errors import AlarmModelsError
from alarm_models.recipe_files import built_in_names, load_recipe, load_recipes
from alarm_service.exposure import require_safe_exposure, require_usable_certificate
from alarm_service.faults import explained
from alarm_service.probing import probe
from alarm_service.settings import Settings, SettingsError
from alarm_service.sockets import listen

__all__ = ["main"]

#: The settings that a command without a server has.
_LOCAL = ("recipe", "set", "device", "max_batch_tokens")

#: The settings that say where a server is.
_ADDRESS = ("host", "port", "tls_certificate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ValidationError as error:
        return _complain(explained(error.errors()))
    except (AlarmModelsError, SettingsError, OSError) as error:
        return _complain(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alarm", description="The ALaRM reward server.")
    parser.add_argument("--version", action="version", version=version("alarm-service"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("serve", help="serve recipes over HTTP")
    _add_settings(command, tuple(Settings.model_fields))
    command.set_defaults(run=_serve)
    command = commands.add_parser("score", help="reward a file of samples, without a server")
    command.add_argument("file", type=Path, help="a JSON object a line: a sample as on the wire")
    command.add_argument("--out", type=Path, help="else standard output")
    _add_settings(command, _LOCAL)
    command.set_defaults(run=_score)
    command = commands.add_parser("recipes", help="list the built-in recipes")
    command.set_defaults(run=_list_recipes)
    command = commands.add_parser("health", help="say whether the server of this machine is ready")
    _add_settings(command, _ADDRESS)
    command.set_defaults(run=_health)
    return parser


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
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


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


def _settings(options: argparse.Namespace) -> Settings:
    given = vars(options).items()
    return Settings(
        **{name: one for name, one in given if name in Settings.model_fields and one is not None}
    )


def _serve(options: argparse.Namespace) -> int:
    settings = _settings(options)
    require_safe_exposure(settings)
    require_usable_certificate(settings)
    recipes = load_recipes(settings.recipe, settings.set)
    listener = listen(settings.host, settings.port)
    # Importing torch takes seconds: callers that connect meanwhile wait in the socket's queue.
    from alarm_service.serving import serve

    return serve(recipes, settings, listener)


def _score(options: argparse.Namespace) -> int:
    settings = _settings(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    # As above: a wrong recipe is told before torch is imported.
    from alarm_service.scoring import score_file

    return score_file(options.file, options.out, recipe, settings)


def _list_recipes(_: argparse.Namespace) -> int:
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


def _health(options: argparse.Namespace) -> int:
    is_ready, reason = probe(_settings(options))
    sys.stdout.write(f"{reason}\n")
    return 0 if is_ready else 1


def _complain(message: str) -> int:
    sys.stderr.write(f"alarm: {message}\n")
    return 1
