"""`alarm health`: whether the server of this machine is ready."""

from __future__ import annotations

import argparse
import sys

from alarm_service.commands.options import Subparsers, add_command, add_settings, settings_of
from alarm_service.health_check import probe

__all__ = ["add_to"]

#: The settings that say where a server is.
_ADDRESS = ("host", "port", "tls_certificate")


def add_to(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        commands, "health", _run, "say whether the server of this machine is ready"
    )
    add_settings(parser, _ADDRESS)


def _run(options: argparse.Namespace) -> int:
    is_ready, reason = probe(settings_of(options))
    # A host that was given as bytes which are no text is told all the same.
    sys.stdout.write(f"{reason.encode('utf-8', 'backslashreplace').decode()}\n")
    return 0 if is_ready else 1
