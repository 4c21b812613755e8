"""A server that is killed under load and started again: its callers notice nothing but time."""

from collections.abc import Mapping

import pytest
from load import load
from processes import PATIENCE_S
from restarts import restartable

from alarm_client import AlarmClient


def killed(truth: Mapping[int, float], num_calls: int, at_calls: set[int], size: int) -> None:
    with restartable() as server, AlarmClient(server.url, timeout=5 * PATIENCE_S) as client:
        client.wait_ready(timeout=2 * PATIENCE_S)

        def after_call(number: int) -> None:
            if number in at_calls:  # while the other seven callers wait for their answers
                server.kill()
                server.start()

        tally = load(
            client, truth, num_callers=8, num_calls=num_calls, size=size, after_call=after_call
        )
    assert (tally.right, tally.wrong, tally.errors) == (num_calls * size, [], {})


def test_a_server_that_is_killed_under_load_loses_and_doubles_no_reward(
    truth: Mapping[int, float],
) -> None:
    killed(truth, num_calls=40, at_calls={12}, size=8)


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_and_doubles_no_reward(
    truth: Mapping[int, float],
) -> None:
    killed(truth, num_calls=600, at_calls={50, 51, 200, 350, 500}, size=8)
