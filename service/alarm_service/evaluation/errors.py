"""What can go wrong with a study."""

from __future__ import annotations

from alarm_models.errors import AlarmModelsError

__all__ = ["StudyError"]


class StudyError(AlarmModelsError):
    """A study cannot be made; the message names the file, line and field, or says what to do."""
