"""`alarm serve`: recipes over HTTP."""

from __future__ import annotations

import argparse
import signal
import sys

from alarm_models.process_tuning import gc_frozen_imports
from alarm_models.recipe.loader import load_recipes
from alarm_service.cli.options import Subparsers, add_command, add_settings, settings_of
from alarm_service.observability.logging import capture_strays, configure_logs, log_stream
from alarm_service.preflight import (
    listen,
    require_safe_exposure,
    require_usable_certificate,
    require_usable_ray,
)
from alarm_service.settings import Settings

__all__ = ["add_serve"]


def add_serve(commands: Subparsers) -> None:
    """Add the command."""
    parser = add_command(commands, "serve", _run_serve, "serve recipes over HTTP")
    add_settings(parser, tuple(Settings.model_fields))


def _run_serve(options: argparse.Namespace) -> int:
    # A hangup asks to read recipes again, and these are about to be read.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = settings_of(options)
    require_safe_exposure(settings)
    require_usable_certificate(settings)
    recipes = load_recipes(settings.recipe, settings.set)
    require_usable_ray(settings)
    listener = listen(settings.host, settings.port)
    # What libraries say as they are imported is written as all else is.
    configure_logs(settings.log_level, log_stream(sys.stderr.fileno()))
    capture_strays()
    # Importing torch takes seconds: callers that connect meanwhile wait in the socket's queue.
    with gc_frozen_imports():
        from alarm_service.server import serve

    if settings.ray:
        from alarm_service.ray.model import RayModelLoader, connect

        # Before the server listens to signals, which Ray would take from it.
        connect(settings)
        return serve(recipes, settings, listener, RayModelLoader(settings))
    return serve(recipes, settings, listener)
