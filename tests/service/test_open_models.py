"""Opening models that wait for a server or for cluster capacity, and its log."""

from collections.abc import Sequence

import pytest
import structlog
from structlog.testing import capture_logs

from alarm_models.errors import NoRoomError, SampleError, UnreachableError
from alarm_models.reward_models.base import HostModel
from alarm_models.types import Sample, Score
from alarm_service.engine import model_set_builder as opening
from alarm_service.engine.model_set_builder import open_models


class Late(HostModel):
    """Opens after failing with each of the given errors."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("late")
        self.errors = list(errors)

    async def open(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def score(self, samples: Sequence[Sample]) -> list[Score | SampleError]:
        return []


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_FIRST_S", 0)


async def test_blocked_start_is_logged_once_and_in_health_until_unblocked() -> None:
    full, gone = NoRoomError("6 replicas want 6 CPUs"), UnreachableError("gone")
    awaited: list[str | None] = []
    structlog.reset_defaults()  # warnings too
    with capture_logs() as logs:
        await open_models([Late(full, full, gone, gone), Late(full, gone)], awaited.append)
    assert [one["error"] for one in logs] == ["6 replicas want 6 CPUs", "gone"]
    told = [str(full)] * 2 + [str(gone)] * 2 + [None, str(full), str(gone), None]
    assert awaited == told


async def test_open_models_change_waits_for_capacity_but_not_for_a_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await open_models([Late(NoRoomError("full"), NoRoomError("full"))], None)
    with pytest.raises(UnreachableError, match="gone"):
        await open_models([Late(UnreachableError("gone"))], None)
    monkeypatch.setattr(opening, "_CAPACITY_WAIT_S", 0)
    with pytest.raises(NoRoomError, match="full"):
        await open_models([Late(NoRoomError("full"))], None)
