"""`alarm serve`: serves recipes over HTTP."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable

import structlog

from alarm_models.process_tuning import gc_frozen_imports
from alarm_models.recipe.from_checkpoint import SOURCE
from alarm_models.recipe.loader import load_recipes
from alarm_models.recipe.schema import Recipe
from alarm_service.cli.options import Subparsers, add_command, add_settings, settings_of
from alarm_service.observability.logging import capture_uncaught, configure_logs, log_stream
from alarm_service.preflight import (
    listen,
    require_safe_exposure,
    require_usable_capture,
    require_usable_certificate,
    require_usable_ray,
)
from alarm_service.settings import Settings

__all__ = ["add_serve"]

#: Seconds between logs of a Ray cluster that does not answer.
_CONNECTION_LOG_S = 10.0

_log = structlog.get_logger()


def add_serve(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(commands, "serve", _run_serve, "serve recipes over HTTP")
    add_settings(parser, tuple(Settings.model_fields))


def _keys(recipe: Recipe) -> dict[str, object]:
    """Return the keys of a recipe's models that differ from the defaults."""
    return {
        name: {"kind": spec.kind, **spec.model_dump(mode="json", exclude_defaults=True)}
        for name, spec in recipe.models.items()
    }


def _run_serve(options: argparse.Namespace) -> int:
    # SIGHUP means reload, and the recipes are about to be loaded anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = settings_of(options)
    require_safe_exposure(settings)
    require_usable_certificate(settings)
    require_usable_capture(settings)
    recipes = load_recipes(settings.recipe, settings.set)
    require_usable_ray(settings)
    listener = listen(settings.host, settings.port)
    # Configure logging first, so that what libraries log at import is JSON too.
    configure_logs(settings.log_level, log_stream(sys.stderr.fileno()))
    capture_uncaught()
    for source, recipe in zip(settings.recipe, recipes, strict=True):
        if source.startswith(SOURCE):
            _log.info("recipe derived from a checkpoint", recipe=recipe.name, models=_keys(recipe))
    # Importing torch takes seconds; callers that connect meanwhile wait in the listen backlog.
    with gc_frozen_imports():
        from alarm_service.server import serve

    if settings.ray:
        from alarm_service.ray.model import RayModelLoader, connect

        if settings.ray_address is None:
            # Ray replaces signal handlers, so connect before the server installs its own.
            connect(settings)
        else:
            _join_cluster(lambda: connect(settings), settings.ray_address)
        return serve(recipes, settings, listener, RayModelLoader(settings))
    return serve(recipes, settings, listener)


def _join_cluster(connect: Callable[[], None], address: str) -> None:
    """Join a Ray cluster in another thread: Ray waits for one without regard for SIGTERM.

    A local cluster is not started so: it would end with the thread.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            connect()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="ray", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_CONNECTION_LOG_S)
        if thread.is_alive():
            _log.warning("waiting for the Ray cluster", address=address)
    if failed:
        raise failed[0]
