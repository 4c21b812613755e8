"""The server's metrics after requests that can be counted by hand."""

import pytest
from served import Server, serving
from standin import FIGURE_1

from alarm_models.types import JudgeTotals, JudgeUsage
from alarm_service.observability.metrics import Metrics


def value(server: Server, name: str, **labels: str) -> float | None:
    return server.engine.metrics.registry.get_sample_value(f"alarm_{name}", labels)


async def test_metrics_after_one_reward_count_its_samples() -> None:
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        scored = value(server, "scored_samples_total", model="words") or 0
        queued = value(server, "queue_seconds_count", model="words") or 0
        await server.reward("A A c w w w", "w")  # the first is past the threshold of 5 words
        assert value(server, "scored_samples_total", model="words") == scored + 2
        assert value(server, "queue_seconds_count", model="words") == queued + 2
        route = "/hierarchical_reward"
        assert value(server, "request_seconds_count", route=route) == 1
        assert value(server, "requests_total", route=route, status="200") == 1
        assert value(server, "truncated_rewards_total", recipe="figure-1") == 0
        # Aspect a is 1 for each capital: two segments, of which the mean value is 1.
        labels = {"recipe": "figure-1", "aspect": "a"}
        assert value(server, "aspect_value_mean", **labels) == pytest.approx(1)
        assert value(server, "throughput_tokens_per_second") == pytest.approx(1000)
        for nothing in ("waiting_callers", "reserved_tokens", "queued_tokens", "given_up_passes"):
            assert value(server, nothing) == 0


def test_pass_given_up_counts_for_its_model() -> None:
    metrics = Metrics()
    metrics.pass_given_up("rm")
    told = metrics.registry.get_sample_value
    assert told("alarm_timed_out_passes_total", {"model": "rm"}) == 1


def test_metrics_of_judges_are_their_totals_by_model() -> None:
    metrics = Metrics()
    usage = JudgeUsage(1, 2, 3, 4, 0.5)
    metrics.judges.bind(
        lambda: {
            "rm": JudgeTotals(usage, num_failed=6, num_unread=9, num_hedged=7, num_over_budget=8)
        }
    )
    expected = {
        "judge_requests": 1,
        "judge_cached_answers": 2,
        "judge_input_tokens": 3,
        "judge_output_tokens": 4,
        "judge_cost": 0.5,
        "judge_failed_questions": 6,
        "judge_unreadable_answers": 9,
        "judge_hedged_requests": 7,
        "judge_over_budget_questions": 8,
    }
    told = metrics.registry.get_sample_value
    assert {name: told(f"alarm_{name}_total", {"model": "rm"}) for name in expected} == expected
