from collections.abc import Iterator
from typing import Any

import pytest
from reward_server import RewardServer, reward_server

from alarm_client.trainers import _settings as settings
from alarm_client.trainers import _source as source


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting in the environment, and every source made meanwhile is closed after it."""
    made: list[source.RewardSource] = []

    make = source.RewardSource.__init__

    def noted(self: source.RewardSource, *args: Any) -> None:
        make(self, *args)
        made.append(self)

    monkeypatch.setattr(source.RewardSource, "__init__", noted)
    for name in settings.NAMES:
        monkeypatch.delenv(f"ALARM_{name.upper()}", raising=False)
    yield
    for one in made:
        one.close()
    source._cached.cache_clear()


@pytest.fixture
def rewards(sources: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RewardServer]:
    """A server that ALARM_URL names."""
    with reward_server() as server:
        monkeypatch.setenv("ALARM_URL", server.url)
        yield server
