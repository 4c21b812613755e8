"""`alarm score`, `record`, `recipes` and `health`."""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
from contextlib import closing
from pathlib import Path

from rich.table import Table

from alarm_models.recipe.loader import built_in_names, load_recipe, locate_recipe
from alarm_service.cli.options import (
    LOCAL,
    Subparsers,
    add_command,
    add_settings,
    one_recipe,
    recipe_files,
    settings_of,
)
from alarm_service.json_lines import require_other_file
from alarm_service.settings import Settings
from alarm_service.stdout_console import StdoutConsole

__all__ = ["add_health", "add_recipes", "add_record", "add_score", "probe"]


def add_score(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "score", _run_score, "score a file of samples without a server")
    parser.add_argument(
        "file",
        type=Path,
        help="JSON lines, one sample per line as in a request, or a captured file; - reads "
        "standard input",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="output file, written after all samples are scored, so it may be the input file; "
        "default: standard output",
    )
    add_settings(parser, LOCAL)


def _run_score(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    recipe = one_recipe(settings)
    require_other_file(options.out, recipe_files(settings.recipe[0], recipe), "the recipe's own")
    # Recipe errors are reported before torch, which takes seconds, is imported.
    from alarm_service.offline import score_file

    return score_file(options.file, options.out, recipe, settings)


def add_record(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "record",
        _run_record,
        "store samples with their scores for a recipe's golden check (key `parity`)",
    )
    parser.add_argument(
        "file",
        type=Path,
        help="JSON lines, one sample per line as in a request, or an earlier record; - reads "
        "standard input",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="output file, which the recipe names as `parity`"
    )
    add_settings(parser, LOCAL)


def _run_record(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    recipe = one_recipe(settings)
    own = [locate_recipe(settings.recipe[0])]  # the parity file is the output
    require_other_file(options.out, own, "the recipe's own")
    # Recipe errors are reported before torch, which takes seconds, is imported.
    from alarm_service.offline import record_file

    return record_file(options.file, options.out, recipe, settings)


def add_recipes(commands: Subparsers) -> None:
    """Add the subcommand."""
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
    StdoutConsole().print(table)
    return 0


_TIMEOUT_S = 5

#: Loopback addresses of servers that listen on all addresses.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - connected to, not listened on


def probe(settings: Settings) -> tuple[bool, str]:
    """Return whether the server is ready, and the reason as a sentence."""
    host = _LOOPBACK.get(settings.host, settings.host)
    try:
        connection = _connection(host, settings.port, is_tls=settings.tls_certificate is not None)
    except http.client.InvalidURL:
        return False, f"{host!r} is not a valid host"
    with closing(connection):
        try:
            connection.request("GET", "/health/ready")
            response = connection.getresponse()
            reason = _reason(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            is_tls = settings.tls_certificate is not None
            if not is_tls and isinstance(error, http.client.BadStatusLine | ConnectionResetError):
                why += "; with TLS give --tls-certificate"
            return False, f"no server responds on {host} port {settings.port}: {why}"
    if reason is None:
        return False, "the response is not from a reward server"
    return response.status == 200, reason


def _connection(host: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    if not is_tls:
        return http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    # The certificate names the host that callers use, not loopback.
    context = ssl._create_unverified_context()  # noqa: S323
    return http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)


def _reason(body: bytes) -> str | None:
    try:
        return str(json.loads(body)["reason"])
    except (ValueError, KeyError, TypeError):
        return None


#: The settings that locate a server.
_ADDRESS = ("host", "port", "tls_certificate")


def add_health(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands, "health", _run_health, "report whether the server on this machine is ready"
    )
    add_settings(parser, _ADDRESS)


def _run_health(options: argparse.Namespace) -> int:
    is_ready, reason = probe(settings_of(options))
    # A host that is not valid UTF-8 is printed with escapes.
    sys.stdout.write(f"{reason.encode('utf-8', 'backslashreplace').decode()}\n")
    return 0 if is_ready else 1
