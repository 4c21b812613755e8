"""What routes are handed: the engine, the settings, and the errors they document."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from alarm_service.answers import ErrorOut
from alarm_service.engine import Engine
from alarm_service.settings import Settings

__all__ = ["EngineOf", "SettingsOf", "documented"]


def documented(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    """Describe the error statuses of a route for the OpenAPI document."""
    return {status: {"model": ErrorOut, "description": why} for status, why in statuses}


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


EngineOf = Annotated[Engine, Depends(_engine)]
SettingsOf = Annotated[Settings, Depends(_settings)]
