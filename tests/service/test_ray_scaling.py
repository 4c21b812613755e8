from types import SimpleNamespace
from typing import Any

import pytest

from alarm_service.ray.routing import QUEUED_TOKENS, ByQueuedTokens, desired_replicas


@pytest.mark.parametrize(
    ("queued", "wanted"),
    [([0], 1), ([100], 1), ([101], 2), ([100, 100, 100], 3), ([0, 0, 350], 4), ([0, 0, 0, 0], 1)],
)
def test_desired_replicas_divides_queued_tokens(queued: list[float], wanted: int) -> None:
    assert desired_replicas(queued, 100) == wanted


def context(metrics: Any) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=3)


def test_by_queued_tokens_sums_reported_tokens() -> None:
    reported = {QUEUED_TOKENS: {"first": 150.0, "second": 60.0}}
    assert ByQueuedTokens(100)(context(reported)) == (3, {})


@pytest.mark.parametrize("metrics", [None, {}, {QUEUED_TOKENS: {}}])
def test_by_queued_tokens_without_reports_keeps_the_target(metrics: Any) -> None:
    assert ByQueuedTokens(100)(context(metrics)) == (3, {})
