"""Log lines about endpoints that give no usable answer, at most one a minute for each reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from alarm_models.types import EndpointFailure
from alarm_service.observability.repeated_log import RepeatedLog

__all__ = ["EndpointFailureLog"]

_log = structlog.get_logger()


class EndpointFailureLog:
    """Logs the failures of models behind endpoints; for use on the event loop.

    A model's first failure for a reason is logged at once, further ones at most once in each period
    with their number as ``count``.
    """

    def __init__(self, period_s: float = 60.0) -> None:
        self._lines = RepeatedLog(period_s)

    def observer(self, model: str) -> Callable[[EndpointFailure], None]:
        """Return the callback for failures of a model."""
        return partial(self._write, model)

    def _write(self, model: str, failure: EndpointFailure) -> None:
        fields = {"error": failure.message} if failure.message else {}
        request_id = structlog.contextvars.get_contextvars().get("request_id")
        if request_id is not None:  # none during warm-up
            fields["request_id"] = request_id
        self._lines.write(
            (model, failure.endpoint, failure.reason),
            _log.warning,
            "no usable answer from an endpoint",
            model=model,
            endpoint=failure.endpoint,
            reason=failure.reason,
            **fields,
        )
