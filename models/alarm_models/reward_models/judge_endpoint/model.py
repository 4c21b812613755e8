"""EndpointJudgeModel: what all models have whose judge is behind a chat endpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from alarm_models.preprocessing.templates import FieldPattern
from alarm_models.recipe.specs import EndpointSpec, Spec
from alarm_models.reward_models.base import HostModel
from alarm_models.reward_models.judge_endpoint.client import JudgeEndpoint
from alarm_models.types import EndpointFailure, JudgeTotals

__all__ = ["EndpointJudgeModel"]


class EndpointJudgeModel(HostModel):
    """A model that asks a judge behind a chat endpoint; subclasses ask and read the answers."""

    is_elsewhere = True

    def __init__(
        self, spec: Spec, endpoint: EndpointSpec, fields: Mapping[str, FieldPattern]
    ) -> None:
        super().__init__("", spec.view_rules)
        self._max_concurrent = endpoint.max_concurrent
        self._endpoint = JudgeEndpoint(endpoint)
        patterns = sorted((name, field.pattern) for name, field in fields.items())
        constants = spec.constants(frozenset({"endpoint"}))
        self._constants = f"{constants}|{endpoint.scoring_constants()}|{patterns}"

    @property
    def fingerprint(self) -> str:
        """A digest of the recipe, the endpoint's address, and the model that it reported."""
        parts = f"{self._constants}|{self._endpoint.identity}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def judge_totals(self) -> JudgeTotals:
        """What the endpoint was asked since it was opened."""
        return self._endpoint.totals

    def observe_failures(self, observe: Callable[[EndpointFailure], None]) -> None:
        """Have ``observe`` called with each question that has no readable answer."""
        self._endpoint.observe = observe

    async def open(self) -> None:
        """Ask which model the endpoint serves; raise `CheckpointError`."""
        await self._endpoint.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._endpoint.close()
