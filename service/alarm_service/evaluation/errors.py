"""Errors of evaluation commands."""

from __future__ import annotations

from alarm_models.errors import AlarmModelsError

__all__ = ["StudyError"]


class StudyError(AlarmModelsError):
    """An evaluation failed; the message names the file, line and field, or says what to do."""
