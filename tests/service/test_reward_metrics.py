import math
from collections.abc import Mapping

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from served import Server, samples, serving
from standin import FIGURE_1

from alarm_service.observability.reward_metrics import (
    AspectObservation,
    RewardMetrics,
    RewardObservation,
)


def earned(
    prompt: str, z: float, num_characters: int = 1, truncated: bool = False, **aspects: float
) -> RewardObservation:
    values = {name: AspectObservation(value, [value], True) for name, value in aspects.items()}
    return RewardObservation(prompt, num_characters, z, z, z >= 0, truncated, values)


class Told:
    """The metrics of one recipe, by name and labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RewardMetrics(self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"alarm_{name}", {"recipe": "r", **labels})

    def pairs(self, aspect: str) -> list[float | None]:
        return [
            self("aspect_pairs_total", aspect=aspect, verdict=verdict)
            for verdict in ("agree", "disagree", "tie")
        ]


def test_pairwise_agreement_compares_adjacent_samples_of_one_prompt() -> None:
    told = Told()
    told.metrics.observe_rewards("r", [
        earned("p", 1, a=0.1, b=0.5),
        earned("q", 9, a=0.9, b=0.5),
        earned("p", 2, a=0.2, b=0.5),  # a agrees, b ties
        earned("p", 3, a=0.1),  # a disagrees, b was not computed
        earned("p", 3, a=0.7, b=0.1),  # the holistic reward says nothing
        earned("q", 8, a=0.8, b=0.6),  # a agrees, b disagrees
    ])  # fmt: skip
    assert told.pairs("a") == [2, 1, None]
    assert told.pairs("b") == [None, 1, 1]


def test_running_correlation_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    z, length, aspect = rng.normal(size=100), rng.integers(1, 99, 100), rng.random(100)
    told = Told()
    for start in range(0, 100, 10):
        told.metrics.observe_rewards("r", [
            earned("p", z[i], int(length[i]), a=aspect[i]) for i in range(start, start + 10)
        ])  # fmt: skip
    weights = 0.5 ** (np.arange(99, -1, -1) / 2048)
    assert told("reward_mean") == pytest.approx(np.average(z, weights=weights))
    assert told("aspect_reward_mean", aspect="a") == pytest.approx(
        np.average(aspect, weights=weights)
    )
    for name, labels, x, y in (
        ("length_correlation", {}, z, length),
        ("holistic_length_correlation", {}, z, length),
        ("aspect_length_correlation", {"aspect": "a"}, aspect, length),
        ("aspect_holistic_correlation", {"aspect": "a"}, aspect, z),
    ):
        covariance = np.cov(x, y, aweights=weights, ddof=0)
        wanted = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
        assert told(name, **labels) == pytest.approx(wanted)


def test_saturated_shaped_values_are_counted() -> None:
    told = Told()
    values = [0.01, 0.049, 0.05, 0.5, 0.95, 0.951]
    for is_sigmoid in (True, False):
        aspect = AspectObservation(sum(values), values, is_sigmoid)
        told.metrics.observe_rewards(
            "r", [RewardObservation("p", 1, 0, 0, True, False, {"a": aspect})]
        )
    assert told("shaped_values_total", aspect="a") == 6
    assert told("saturated_values_total", aspect="a", end="low") == 2
    assert told("saturated_values_total", aspect="a", end="high") == 1


def test_aspect_observation_without_segments_has_no_mean() -> None:
    told = Told()
    empty = {"a": AspectObservation(0.0, [], True)}
    told.metrics.observe_rewards(
        "r", [RewardObservation("p", 1, z, z, True, False, empty) for z in (1, 2)]
    )
    assert told("aspect_reward_count", aspect="a") == 2
    assert told("aspect_holistic_correlation", aspect="a") is None
    assert told.pairs("a") == [None] * 3


def test_correlation_of_few_samples_is_nan() -> None:
    told = Told()
    told.metrics.observe_rewards("r", [earned("p", z, z) for z in range(31)])
    assert math.isnan(told("length_correlation") or 0)
    told.metrics.observe_rewards("r", [earned("p", 31, 31)])
    assert told("length_correlation") == pytest.approx(1)


def value(server: Server, name: str, **labels: str) -> float | None:
    return server.engine.metrics.registry.get_sample_value(name, labels)


async def test_reward_metrics_observe_the_rewards_of_a_request() -> None:
    async with serving(FIGURE_1) as server:
        # Past the threshold of 5 words: aspect a is 1 a capital, b and c are sigmoids.
        answer = await server.reward("A b c w w", "A A c w w w", "w", "w boom", aspects="admitted")
        assert [one["admitted"] for one in answer.json()["rewards"]] == [True, True, False, None]
        told = {"recipe": "figure-1"}
        assert value(server, "alarm_admitted_samples_total", admitted="true", **told) == 2
        assert value(server, "alarm_admitted_samples_total", admitted="false", **told) == 1
        assert value(server, "alarm_reward_errors_total", code="model_failed", **told) == 1
        assert value(server, "alarm_holistic_reward_mean", **told) == pytest.approx(4, abs=1e-2)
        assert value(server, "alarm_completion_characters_sum", **told) == 9 + 11 + 1
        assert value(server, "alarm_aspect_reward_mean", aspect="a", **told) == pytest.approx(
            1.5, abs=1e-3
        )
        assert value(server, "alarm_aspect_reward_count", aspect="b", **told) == 2
        assert value(server, "alarm_shaped_values_total", aspect="c", **told) == 2
        assert value(server, "alarm_shaped_values_total", aspect="a", **told) is None
        # Both have capitals alone, so that a sees no difference; b and c are not in both.
        assert value(server, "alarm_aspect_pairs_total", aspect="a", verdict="tie", **told) == 1


async def test_reward_metrics_leave_out_rewards_that_would_hide_all_others() -> None:
    async with serving(FIGURE_1) as server:
        texts = ["w " * number for number in range(1, 41)]
        huge = await server.reward(*texts, overrides={"holistic_weight": 1e307})
        assert huge.status_code == 200
        await server.reward(*texts)
        assert (await server.client.get("/metrics")).status_code == 200
        assert (await server.client.get("/recent")).status_code == 200
        told = {"recipe": "figure-1"}
        assert value(server, "alarm_reward_count", **told) == 40
        assert abs(value(server, "alarm_reward_mean", **told) or math.inf) < 1000
        assert value(server, "alarm_length_correlation", **told) == pytest.approx(1, abs=0.1)


async def test_engine_metrics_observe_batches_and_times() -> None:
    async with serving(FIGURE_1) as server:
        await server.engine.life.until_ready()
        before = value(server, "alarm_tokens_total", model="words") or 0
        await server.score("a a a", "a", "boom")
        assert value(server, "alarm_tokens_total", model="words") == before + 4
        assert value(server, "alarm_computed_tokens_total", model="words") == before + 4
        assert value(server, "alarm_failed_batches_total", model="words") == 3
        assert value(server, "alarm_forward_seconds_count", model="words") == 1 + 5
        assert value(server, "alarm_prepare_seconds_count", model="words") == 2
        assert value(server, "alarm_read_seconds_count", model="words") == 1 + 2
        # 60 s at the 1,000 tokens a second that are assumed at first.
        assert value(server, "alarm_max_queued_tokens") == 60_000
        assert value(server, "alarm_admitted_requests") == 0
        assert (value(server, "alarm_occupied_seconds_total") or 0) > 0
        assert (value(server, "alarm_device_busy_seconds_total") or 0) > 0


def _series(server: Server) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in server.engine.metrics.registry.collect()
        for sample in family.samples
    }


async def test_metrics_callers_cannot_create_series() -> None:
    async def ask(server: Server, word: str) -> None:
        body: Mapping[str, object] = {"samples": samples("A b c w w", "boom", word)}
        await server.client.post("/hierarchical_reward", json=body)
        await server.client.post("/score", json={"model": word, **body})
        await server.client.post("/hierarchical_reward", json={"recipe": word, **body})
        await server.client.post(f"/{word}", json=body)
        await server.client.request(word.upper(), "/score")

    async with serving(FIGURE_1) as server:
        await ask(server, "first")
        known = _series(server)
        for index in range(20):
            await ask(server, f"word-{index}")
        assert _series(server) == known
