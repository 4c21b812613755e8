from collections.abc import Iterator, Mapping

import pytest
from callers import truth_of
from restarts import Restartable, restartable

from alarm_client.client import AlarmClient

NUM_TEXTS = 96


@pytest.fixture(scope="session")
def server() -> Iterator[Restartable]:
    """Serve `mini` in a subprocess, with a small queue and small bodies."""
    flags = ("--max-body-bytes", str(1 << 20), "--body-timeout-s", "1.5")
    with restartable(*flags, "--max-queued-tokens", "500") as server:
        with AlarmClient(server.url) as client:
            client.wait_ready(timeout=120)
        yield server


@pytest.fixture(scope="session")
def truth(server: Restartable) -> Mapping[int, float]:
    """Return the reward of each index from an undisturbed server."""
    return truth_of(server.url, NUM_TEXTS)
