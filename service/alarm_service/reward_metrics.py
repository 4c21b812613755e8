"""All metrics of the rewards, declared once: what the policy earns, and whether it games it."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from alarm_service.statistics import RunningCorrelation

__all__ = ["AspectEarned", "Earned", "RewardMetrics"]

#: Of rewards in standard deviations, or near to 1: fine where most are, coarse far out.
_NEAR = (-10, -5, -3, -2, -1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
#: Of whole rewards, which have the recipe's weights in them.
_WIDE = (-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)
_CHARACTERS = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600)

#: Correlations look back some thousands of samples: a step or a few of training.
_HALF_LIFE, _MIN_PAIRS = 2048, 32

#: Shaped values beyond these ends hardly change with what the model thinks.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class AspectEarned:
    """What one aspect gave a sample: its reward before its weight, and the values in it."""

    reward: float
    values: Sequence[float]
    is_sigmoid: bool

    @property
    def mean(self) -> float:
        """The mean value: unlike the reward, not larger for being longer."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, slots=True)
class Earned:
    """What one sample earned and for what; ``num_characters`` is its completion's length."""

    prompt: Hashable
    num_characters: int
    reward: float
    z: float
    admitted: bool
    truncated: bool
    aspects: Mapping[str, AspectEarned]


class RewardMetrics:
    """The rewards' part of one server's metrics; may be told of from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["recipe", *labels], registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, ["recipe", *labels], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, ["recipe", *labels], buckets=buckets, registry=registry)

        self._holistic = histogram("alarm_holistic_reward", "Normalised holistic scores.", _NEAR)
        self._reward = histogram("alarm_reward", "Whole rewards.", _WIDE)
        self._aspect = histogram(
            "alarm_aspect_reward", "Aspects' rewards before their weights.", _NEAR, "aspect"
        )
        self._length = histogram(
            "alarm_completion_characters", "Lengths of rewarded completions.", _CHARACTERS
        )
        self._admitted = counter(
            "alarm_admitted_samples",
            "Rewarded samples by whether they are past the threshold.",
            "admitted",
        )
        self._truncated = counter(
            "alarm_truncated_rewards", "Rewarded samples of which a model read only a part."
        )
        self._errors = counter("alarm_reward_errors", "Samples without a reward.", "code")
        self._shaped = counter(
            "alarm_shaped_values", "Aspects' values that a sigmoid shaped.", "aspect"
        )
        self._saturated = counter(
            "alarm_saturated_values", "Of those, below 0.05 or over 0.95.",
            "aspect", "end",
        )  # fmt: skip
        self._pairs = counter(
            "alarm_aspect_pairs",
            "Neighbours of one prompt in one request, by whether the aspect orders them as the "
            "holistic reward does: agree, disagree, or tie (the aspect sees no difference).",
            "aspect",
            "verdict",
        )
        # Histograms with negative buckets have no sum in Prometheus: the means are told besides.
        self._reward_mean = gauge("alarm_reward_mean", "Running mean of whole rewards.")
        self._holistic_mean = gauge(
            "alarm_holistic_reward_mean", "Running mean of normalised holistic scores."
        )
        self._aspect_mean = gauge(
            "alarm_aspect_reward_mean", "Running mean of an aspect's rewards.", "aspect"
        )
        self._value_mean = gauge(
            "alarm_aspect_value_mean", "Running mean of an aspect's mean values.", "aspect"
        )
        self._by_length = gauge(
            "alarm_length_correlation",
            "Running correlation of the whole reward with the completion's length.",
        )
        self._holistic_by_length = gauge(
            "alarm_holistic_length_correlation",
            "Running correlation of the holistic reward with the completion's length.",
        )
        self._aspect_by_length = gauge(
            "alarm_aspect_length_correlation",
            "Running correlation of an aspect's reward with the completion's length.",
            "aspect",
        )
        self._aspect_by_holistic = gauge(
            "alarm_aspect_holistic_correlation",
            "Running correlation of an aspect's mean value with the holistic reward.",
            "aspect",
        )
        self._running: dict[tuple[Gauge, Gauge, tuple[str, ...]], RunningCorrelation] = {}
        self._lock = threading.Lock()

    def rewarded(self, recipe: str, samples: Sequence[Earned]) -> None:
        """Note what the samples of one request earned."""
        with self._lock:
            for one in samples:
                self._note(recipe, one)
                for aspect, earned in one.aspects.items():
                    self._note_aspect(recipe, aspect, earned, one)
            for aspect, verdict in _verdicts(samples):
                self._pairs.labels(recipe, aspect, verdict).inc()
            for (correlation, mean, labels), running in self._running.items():
                correlation.labels(*labels).set(running.value)
                mean.labels(*labels).set(running.mean_x)

    def failed(self, recipe: str, code: str) -> None:
        """Count a sample that got no reward."""
        self._errors.labels(recipe, code).inc()

    def _note(self, recipe: str, one: Earned) -> None:
        self._holistic.labels(recipe).observe(one.z)
        self._reward.labels(recipe).observe(one.reward)
        self._length.labels(recipe).observe(one.num_characters)
        self._admitted.labels(recipe, str(one.admitted).lower()).inc()
        self._truncated.labels(recipe).inc(one.truncated)
        length, labels = one.num_characters, (recipe,)
        self._correlate(self._by_length, self._reward_mean, labels, one.reward, length)
        self._correlate(self._holistic_by_length, self._holistic_mean, labels, one.z, length)

    def _note_aspect(self, recipe: str, aspect: str, earned: AspectEarned, one: Earned) -> None:
        labels, reward, length = (recipe, aspect), earned.reward, one.num_characters
        self._aspect.labels(*labels).observe(reward)
        self._correlate(self._aspect_by_length, self._aspect_mean, labels, reward, length)
        if earned.values:
            self._correlate(self._aspect_by_holistic, self._value_mean, labels, earned.mean, one.z)
        if earned.is_sigmoid:
            self._shaped.labels(*labels).inc(len(earned.values))
            low = sum(value < _LOW for value in earned.values)
            high = sum(value > _HIGH for value in earned.values)
            self._saturated.labels(*labels, "low").inc(low)
            self._saturated.labels(*labels, "high").inc(high)

    def _correlate(
        self, correlation: Gauge, mean: Gauge, labels: tuple[str, ...], x: float, y: float
    ) -> None:
        key = (correlation, mean, labels)
        if key not in self._running:
            self._running[key] = RunningCorrelation(_HALF_LIFE, _MIN_PAIRS)
        self._running[key].add(x, y)


def _verdicts(samples: Sequence[Earned]) -> Iterator[tuple[str, str]]:
    """Compare neighbours of one prompt, as the paper chooses its aspects (Lai et al. 2024).

    Pairs that the holistic reward does not tell apart say nothing. The paper counts ties of the
    aspect as agreement; here they are told apart, as a coarse aspect ties often.
    """
    by_prompt: dict[Hashable, list[Earned]] = {}
    for one in samples:
        by_prompt.setdefault(one.prompt, []).append(one)
    for group in by_prompt.values():
        for first, second in pairwise(group):
            if first.z == second.z:
                continue
            for aspect, earned in first.aspects.items():
                other = second.aspects.get(aspect)
                if other is not None and earned.values and other.values:
                    yield aspect, _verdict(first.z - second.z, earned.mean - other.mean)


def _verdict(holistic: float, aspect: float) -> str:
    if aspect == 0:
        return "tie"
    return "agree" if (holistic > 0) == (aspect > 0) else "disagree"
