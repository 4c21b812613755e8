"""The `alarm` command: its commands put together, and how what goes wrong is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pydantic import ValidationError

from alarm_models.errors import AlarmModelsError
from alarm_models.threads import spin_briefly
from alarm_service.commands import (
    calibrate,
    evaluate,
    health,
    judge,
    recipes,
    record,
    score,
    select,
    serve,
)
from alarm_service.faults import explained
from alarm_service.settings import SettingsError

__all__ = ["main"]

_COMMANDS = (serve, score, recipes, record, health, select, calibrate, evaluate, judge)

#: The settings that say where a server is.
_ADDRESS = ("host", "port", "tls_certificate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    spin_briefly()
    try:
        code = int(options.run(options))
        if sys.stdout is not None:  # what cannot be written is told here, not at the very end
            sys.stdout.flush()
        return code
    except ValidationError as error:
        return _complain(explained(error.errors()))
    except BrokenPipeError:
        # Who reads has enough, as `head` does. What is left must not be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _complain(_sentence(error))
    except (AlarmModelsError, SettingsError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130  # as shells count it: 128 and the signal


def _sentence(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alarm", description="The ALaRM reward server.")
    parser.add_argument("--version", action="version", version=version("alarm-service"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def _complain(message: str) -> int:
    sys.stderr.write(f"alarm: {message}\n")
    return 1
