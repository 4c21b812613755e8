"""The `alarm` command: subcommands and error output."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pydantic import ValidationError

from alarm_models.errors import AlarmModelsError
from alarm_models.process_tuning import limit_openmp_spin
from alarm_service.cli.captures import add_audit, add_replay
from alarm_service.cli.commands import add_health, add_recipes, add_record, add_score
from alarm_service.cli.evaluation import add_calibrate, add_evaluate, add_judge, add_select
from alarm_service.cli.inspect import add_inspect
from alarm_service.cli.serve import add_serve
from alarm_service.cli.view import add_view
from alarm_service.errors import format_validation_errors
from alarm_service.settings import SettingsError

__all__ = ["main"]

_COMMANDS = (
    add_serve,
    add_score,
    add_recipes,
    add_inspect,
    add_record,
    add_health,
    add_select,
    add_calibrate,
    add_evaluate,
    add_judge,
    add_replay,
    add_audit,
    add_view,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    limit_openmp_spin()
    if isinstance(sys.stdout, io.TextIOWrapper) and not _is_unicode(sys.stdout.encoding):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = int(options.run(options))
        if sys.stdout is not None:  # raise write errors here, not at interpreter exit
            sys.stdout.flush()
        return code
    except ValidationError as error:
        return _complain(format_validation_errors(error.errors()))
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does; do not flush the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _complain(_sentence(error))
    except (AlarmModelsError, SettingsError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130  # the shell convention: 128 + SIGINT


def _is_unicode(encoding: str) -> bool:
    return encoding.lower().startswith("utf")


def _sentence(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alarm",
        description="ALaRM reward server: serve recipes, score files, run offline evaluations.",
    )
    parser.add_argument("--version", action="version", version=version("alarm-service"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_command in _COMMANDS:
        add_command(commands)
    return parser


def _complain(message: str) -> int:
    sys.stderr.write(f"alarm: {message}\n")
    return 1
