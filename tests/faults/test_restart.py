"""Callers of a server that is killed under load and restarted only notice a delay."""

from collections.abc import Mapping

import pytest
from callers import load
from processes import PATIENCE_S
from restarts import Restartable

from alarm_client.client import AlarmClient


def killed(
    server: Restartable, truth: Mapping[int, float], num_calls: int, at_calls: set[int]
) -> None:
    with AlarmClient(server.url, timeout=5 * PATIENCE_S) as client:

        def after_call(number: int) -> None:
            if number in at_calls:  # while the other seven callers wait for their answers
                server.kill()
                server.start()

        tally = load(client, truth, num_callers=8, num_calls=num_calls, after_call=after_call)
    assert (tally.right, tally.wrong, tally.errors) == (num_calls * 4, [], {})


def test_server_killed_under_load_loses_and_duplicates_no_reward(
    server: Restartable, truth: Mapping[int, float]
) -> None:
    killed(server, truth, num_calls=24, at_calls={8})


@pytest.mark.slow
def test_server_killed_repeatedly_loses_and_duplicates_no_reward(
    server: Restartable, truth: Mapping[int, float]
) -> None:
    killed(server, truth, num_calls=600, at_calls={50, 51, 200, 350, 500})
