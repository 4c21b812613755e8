"""`alarm score`, `record`, `recipes` and `health`."""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alarm_models.recipe.loader import built_in_names, load_recipe, load_recipes, locate_recipe
from alarm_service.cli.options import (
    LOCAL,
    Subparsers,
    add_command,
    add_settings,
    recipe_files,
    settings_of,
)
from alarm_service.json_lines import require_other_file
from alarm_service.settings import Settings

__all__ = ["add_health", "add_recipes", "add_record", "add_score", "probe"]


def add_score(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "score", _run_score, "reward a file of samples, without a server"
    )
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


def _run_score(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    require_other_file(options.out, recipe_files(settings.recipe[0], recipe), "the recipe's own")
    # A wrong recipe is told before torch, which takes seconds, is imported.
    from alarm_service.offline import score_file

    return score_file(options.file, options.out, recipe, settings)


def add_record(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "record", _run_record, "store samples with their scores, for a recipe's `parity`"
    )
    parser.add_argument(
        "file",
        type=Path,
        help="a JSON object a line: a sample as on the wire; or an earlier record; - reads "
        "standard input",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file that `parity` names")
    add_settings(parser, LOCAL)


def _run_record(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    (recipe, *_) = load_recipes(settings.recipe[:1], settings.set)
    own = [locate_recipe(settings.recipe[0])]  # its parity file is what this writes
    require_other_file(options.out, own, "the recipe's own")
    # A wrong recipe is told before torch, which takes seconds, is imported.
    from alarm_service.offline import record_file

    return record_file(options.file, options.out, recipe, settings)


def add_recipes(commands: Subparsers) -> None:
    """Add the command."""
    add_command(commands, "recipes", _run_recipes, "list the built-in recipes")


def _run_recipes(_: argparse.Namespace) -> int:
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


_PATIENCE_S = 5

#: Where a server that listens on all addresses is reached from its own machine.
_OWN = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked at, not listened on


def probe(settings: Settings) -> tuple[bool, str]:
    """Return whether the server is ready, and why or why not in a sentence."""
    host = _OWN.get(settings.host, settings.host)
    try:
        connection = _connection(host, settings.port, is_tls=settings.tls_certificate is not None)
    except http.client.InvalidURL:
        return False, f"{host!r} is no host that can be asked"
    with closing(connection):
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            reason = _reason(answer.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            return False, f"no server answers on {host} port {settings.port}: {error!r}"
    if reason is None:
        return False, "what answers is no reward server"
    return answer.status == 200, reason


def _connection(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if not is_tls:
        return http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
    # The certificate is made out to the name that callers use, not to this machine's own.
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)


def _reason(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return None


#: The settings that say where a server is.
_ADDRESS = ("host", "port", "tls_certificate")


def add_health(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "health", _run_health, "say whether the server of this machine is ready"
    )
    add_settings(parser, _ADDRESS)


def _run_health(options: argparse.Namespace) -> int:
    is_ready, reason = probe(settings_of(options))
    # A host that was given as bytes which are no text is told all the same.
    sys.stdout.write(f"{reason.encode('utf-8', 'backslashreplace').decode()}\n")
    return 0 if is_ready else 1
