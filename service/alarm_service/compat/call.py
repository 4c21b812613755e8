"""What every route for trainers does with its samples: one call, counted, timed and logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Path, Query, Request

from alarm_models.sample import Sample
from alarm_service.compat.rewarding import Numbers, find, number_samples
from alarm_service.compat.shapes import TextOptions
from alarm_service.errors import TooLarge
from alarm_service.settings import Settings
from alarm_service.web.authorizing import caller_of
from alarm_service.web.caller import while_wanted
from alarm_service.web.dependencies import EngineOf, SettingsOf, TimeoutMs, timeout_s
from alarm_service.web.large import REQUESTS_A_ROLLOUT

__all__ = ["Call", "CallOf", "Name", "Options"]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Call:
    """One trainer's request."""

    request: Request
    engine: EngineOf
    settings: Settings
    timeout_ms: int | None

    async def numbers(
        self, name: str | None, prepare: Callable[[], Sequence[Sample]], field: str
    ) -> Numbers:
        """Return the numbers of the samples that ``prepare`` makes, by a recipe or model.

        ``field`` is what the trainer calls them. Raises `ServiceError`.
        """
        work = self._numbers(name, prepare, field)
        return await while_wanted(self.request, work, timeout_s(self.timeout_ms, self.settings))

    async def _numbers(
        self, name: str | None, prepare: Callable[[], Sequence[Sample]], field: str
    ) -> Numbers:
        find(self.engine.catalog, name)  # who names nothing hears so at once
        samples = await self.engine.passage.in_worker(prepare)
        self._check(samples, field)
        return await number_samples(
            self.engine, name, samples, field, caller_of(self.request.scope)
        )

    def _check(self, samples: Sequence[Sample], field: str) -> None:
        most = REQUESTS_A_ROLLOUT * self.settings.max_samples
        if len(samples) > most:
            raise TooLarge(f"{field} has {len(samples)} items, a request may have {most}")
        if self.settings.log_texts:
            for sample in samples:
                _log.info("sample", prompt=sample.prompt_text, completion=sample.completion_text)


async def _call(
    request: Request, engine: EngineOf, settings: SettingsOf, timeout_ms: TimeoutMs = None
) -> Call:
    """Take what a route needs of a request."""
    return Call(request, engine, settings, timeout_ms)


CallOf = Annotated[Call, Depends(_call)]
Name = Annotated[str, Path(description="a recipe or a model", examples=["mini"])]
Options = Annotated[TextOptions, Query()]
