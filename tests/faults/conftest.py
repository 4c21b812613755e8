from collections.abc import Iterator, Mapping

import pytest
from load import truth_of
from processes import Process, alarm_serve

from alarm_client import AlarmClient

NUM_TEXTS = 200


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """`mini` in a process of its own, with little room in its queue and for bodies."""
    flags = ("--max-body-bytes", str(1 << 20), "--body-timeout-s", "1.5")
    with alarm_serve("mini", *flags, "--max-queued-tokens", "2000") as process:
        with AlarmClient(process.url) as client:
            client.wait_ready(timeout=120)
        yield process


@pytest.fixture(scope="session")
def truth(server: Process) -> Mapping[int, float]:
    """The reward of each text's index from an undisturbed server."""
    return truth_of(server.url, NUM_TEXTS)
