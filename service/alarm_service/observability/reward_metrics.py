"""Prometheus metrics of rewards."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter as Counted
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from alarm_service.observability.gaming import (
    RULE,
    WINDOW,
    Drift,
    GamingFigures,
    RewardRecord,
    figures_of,
    holistic_of_groups,
    omitted_part,
)
from alarm_service.observability.recent import (
    KeptTexts,
    RecentRewards,
    RecentSample,
    recent_rewards,
)

__all__ = [
    "AspectObservation",
    "RewardMetrics",
    "RewardObservation",
    "RunningCorrelation",
    "pairwise_agreement",
]


class RunningCorrelation:
    """Pearson's correlation with exponentially decaying weights.

    A pair's weight halves every ``half_life`` pairs. The mean and the sums of squares are updated
    as in West (1979) for weighted data, which is numerically stable for large means.
    """

    def __init__(self, half_life: float, min_pairs: int) -> None:
        self._decay: float = 0.5 ** (1 / half_life)
        self._min_pairs = min_pairs
        self._num_pairs = 0
        self._weight = 0.0
        self._mean_x = self._mean_y = 0.0
        self._xx = self._xy = self._yy = 0.0

    def add(self, x: float, y: float) -> None:
        """Count one more pair."""
        self._num_pairs += 1
        self._weight = self._decay * self._weight + 1
        from_x, from_y = x - self._mean_x, y - self._mean_y
        self._mean_x += from_x / self._weight
        self._mean_y += from_y / self._weight
        left_x, left_y = x - self._mean_x, y - self._mean_y
        self._xx = self._decay * self._xx + from_x * left_x
        self._yy = self._decay * self._yy + from_y * left_y
        self._xy = self._decay * self._xy + from_x * left_y

    @property
    def mean_x(self) -> float:
        """The weighted mean of the pairs' first values; 0 without pairs."""
        return self._mean_x

    @property
    def value(self) -> float:
        """The correlation in [-1, 1]; NaN for too few pairs, or if one side is constant."""
        scale = math.sqrt(self._xx) * math.sqrt(self._yy)
        if self._num_pairs < self._min_pairs or scale == 0:
            return math.nan
        return max(-1.0, min(1.0, self._xy / scale))


@dataclass(frozen=True, slots=True)
class AspectObservation:
    """One aspect's reward for a sample, before its weight, and the shaped values behind it."""

    reward: float
    values: Sequence[float]
    is_sigmoid: bool

    @property
    def mean(self) -> float:
        """The mean value; unlike the reward it does not grow with the completion's length."""
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, slots=True)
class RewardObservation:
    """One sample's reward and its parts; ``num_characters`` is the completion's length.

    ``parts`` are what the components add to the reward, or None if the rule is no sum.
    """

    prompt: Hashable
    num_characters: int
    reward: float
    z: float
    admitted: bool
    truncated: bool
    aspects: Mapping[str, AspectObservation]
    parts: Mapping[str, float] | None = None
    omitted: Sequence[str] = ()
    texts: KeptTexts | None = None

    @property
    def largest(self) -> float:
        """The largest magnitude of its numbers."""
        values = [self.reward, self.z, *(self.parts or {}).values()]
        values += [value for one in self.aspects.values() for value in (one.reward, *one.values)]
        return max(map(abs, values))


def pairwise_agreement(samples: Sequence[RewardObservation]) -> Iterator[tuple[str, str]]:
    """Compare adjacent samples of a prompt, as the paper selects aspects (Lai et al. 2024).

    Pairs that the holistic reward ties are skipped. The paper counts pairs that the aspect ties
    as agreement; here they are reported separately, because a coarse aspect ties often.
    """
    by_prompt: dict[Hashable, list[RewardObservation]] = {}
    for one in samples:
        by_prompt.setdefault(one.prompt, []).append(one)
    for group in by_prompt.values():
        for first, second in pairwise(group):
            if first.z == second.z:
                continue
            for aspect, mine in first.aspects.items():
                other = second.aspects.get(aspect)
                if other is not None and mine.values and other.values:
                    yield aspect, _verdict(first.z - second.z, mine.mean - other.mean)


def _verdict(holistic: float, aspect: float) -> str:
    if aspect == 0:
        return "tie"
    return "agree" if (holistic > 0) == (aspect > 0) else "disagree"


#: Buckets for rewards in standard deviations or near 1: fine in the center, coarse in the tails.
_NEAR = (-10, -5, -3, -2, -1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
#: Buckets for total rewards, which include the recipe's weights.
_WIDE = (-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)
_CHARACTERS = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600)

#: Running correlations cover a few thousand samples: one or a few training steps.
_HALF_LIFE, _MIN_PAIRS = 2048, 32

#: Bounds outside of which the shaping is saturated.
_LOW, _HIGH = 0.05, 0.95


#: Samples with a larger reward or part, such as by a request's weights, are left out of all
#: figures: they would hide all others, and their squares overflow.
_LARGEST = 1e15

#: Samples after which the drift is brought up to date, if nothing reads it before.
_MAX_UNREAD = 256


@dataclass(slots=True)
class _Window:
    """The newest samples of one recipe, and what was computed of them.

    ``num_unread`` samples at its end are not in ``drift`` yet. ``failures`` are samples without a
    reward: the number of samples that were rewarded before, and the error's code.
    """

    samples: deque[RecentSample] = field(default_factory=lambda: deque(maxlen=WINDOW))
    failures: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    components: set[str] = field(default_factory=set)
    num_requests: int = 0
    num_samples: int = 0
    num_unread: int = 0
    drift: Drift = field(default_factory=Drift)
    figures: tuple[int, GamingFigures] = (0, figures_of(()))


class RewardMetrics:
    """The reward metrics of one server; thread-safe.

    With ``keeps_texts``, the beginnings of recent texts are kept in memory for the page.
    """

    def __init__(self, registry: CollectorRegistry, *, keeps_texts: bool = False) -> None:
        self.keeps_texts = keeps_texts

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, ["recipe", *labels], registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, ["recipe", *labels], registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, ["recipe", *labels], buckets=buckets, registry=registry)

        self._holistic = histogram("alarm_holistic_reward", "Normalized holistic scores.", _NEAR)
        self._reward = histogram("alarm_reward", "Total rewards.", _WIDE)
        self._aspect = histogram(
            "alarm_aspect_reward", "Aspect rewards before weighting.", _NEAR, "aspect"
        )
        self._length = histogram(
            "alarm_completion_characters",
            "Lengths of rewarded completions in characters.",
            _CHARACTERS,
        )
        self._admitted = counter(
            "alarm_admitted_samples",
            "Rewarded samples, by whether they are past the threshold.",
            "admitted",
        )
        self._truncated = counter(
            "alarm_truncated_rewards", "Rewarded samples that were truncated for a model."
        )
        self._errors = counter(
            "alarm_reward_errors", "Samples without a reward, by error code.", "code"
        )
        self._shaped = counter(
            "alarm_shaped_values", "Aspect values shaped by a sigmoid.", "aspect"
        )
        self._saturated = counter(
            "alarm_saturated_values", "Sigmoid-shaped aspect values below 0.05 (low) or "
            "above 0.95 (high).",
            "aspect", "end",
        )  # fmt: skip
        self._pairs = counter(
            "alarm_aspect_pairs",
            "Adjacent samples of a prompt in a request, by whether the aspect orders them like the "
            "holistic reward: agree, disagree, or tie (equal for the aspect).",
            "aspect",
            "verdict",
        )
        self._omitted = counter(
            "alarm_omitted_rewards",
            "Rewarded samples of which a model was not shown a part, by part (docs/samples.md).",
            "part",
        )
        self._flat = gauge(
            "alarm_zero_deviation_group_share",
            "Share of groups whose rewards are all equal, among the last 2048 samples.",
        )
        self._at_ceiling = gauge(
            "alarm_ceiling_sample_share",
            "Share of samples within 1e-4 of the largest reward of the last 2048 samples.",
        )
        self._variance = gauge(
            "alarm_reward_variance_share",
            "Share of the variance of the last 2048 rewards that a component explains: the "
            "holistic score, an aspect, or what the rule adds to their sum.",
            "component",
        )
        self._drift = gauge(
            "alarm_holistic_drift",
            "CUSUM of the normalized holistic score, by direction, in standard deviations of the "
            "calibration; above 15 the scores have moved away from it.",
            "direction",
        )
        # Histograms with negative buckets have no sum in Prometheus, so means are gauges.
        self._reward_mean = gauge("alarm_reward_mean", "Running mean of total rewards.")
        self._holistic_mean = gauge(
            "alarm_holistic_reward_mean", "Running mean of normalized holistic scores."
        )
        self._aspect_mean = gauge(
            "alarm_aspect_reward_mean",
            "Running mean of an aspect's rewards before weighting.",
            "aspect",
        )
        self._value_mean = gauge(
            "alarm_aspect_value_mean",
            "Running mean of an aspect's mean value per sample.",
            "aspect",
        )
        self._by_length = gauge(
            "alarm_length_correlation",
            "Running correlation of the total reward with the completion's length.",
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
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()

    def observe_rewards(self, recipe: str, samples: Sequence[RewardObservation]) -> None:
        """Observe the rewards of the samples of one request."""
        samples = [one for one in samples if one.largest <= _LARGEST]
        with self._lock:
            self._observe_total(recipe, samples)
            for aspect in dict.fromkeys(name for one in samples for name in one.aspects):
                having = [one for one in samples if aspect in one.aspects]
                self._observe_aspect(recipe, aspect, having)
            for (aspect, verdict), num_pairs in Counted(pairwise_agreement(samples)).items():
                self._pairs.labels(recipe, aspect, verdict).inc(num_pairs)
            for (correlation, mean, labels), running in self._running.items():
                correlation.labels(*labels).set(running.value)
                mean.labels(*labels).set(running.mean_x)
            self._keep(recipe, samples)

    def count_failure(self, recipe: str, code: str) -> None:
        """Count a sample without a reward."""
        self._errors.labels(recipe, code).inc()
        with self._lock:
            window = self._window(recipe)
            window.failures.append((window.num_samples, code))

    def refresh(self) -> None:
        """Compute the figures of all recipes, so that the gauges find them ready."""
        with self._lock:
            recipes = list(self._windows)
        for recipe in recipes:
            self._figures(recipe)

    def recent(self, recipe: str) -> RecentRewards:
        """Summarize the newest samples of a recipe."""
        figures = self._figures(recipe)
        with self._lock:
            window = self._windows.get(recipe, _Window())
            samples = list(window.samples)
            first = window.num_samples - len(samples)
            codes = [code for at, code in window.failures if at >= first]
            _read_drift(window)
            drift = (window.drift.up, window.drift.down)
        return recent_rewards(samples, codes, figures, drift)

    def _window(self, recipe: str) -> _Window:
        """Return the recipe's window; a new one is shown by the gauges from now on."""
        window = self._windows.get(recipe)
        if window is None:
            window = self._windows[recipe] = _Window()
            self._show(self._flat, lambda one: one.zero_deviation_share, recipe)
            self._show(self._at_ceiling, lambda one: one.ceiling_share, recipe)
            for direction in ("up", "down"):
                shown = self._drift.labels(recipe, direction)
                shown.set_function(partial(self._drift_of, recipe, direction))
        return window

    def _show(
        self, gauge: Gauge, figure: Callable[[GamingFigures], float | None], *labels: str
    ) -> None:
        """Let a gauge read a figure of the recipe, the first label, when metrics are scraped."""

        def value() -> float:
            found = figure(self._figures(labels[0]))
            return math.nan if found is None else found

        gauge.labels(*labels).set_function(value)

    def _keep(self, recipe: str, samples: Sequence[RewardObservation]) -> None:
        """Keep samples in the recipe's window; figures are computed when something reads them."""
        window = self._window(recipe)
        window.num_requests += 1
        window.num_samples += len(samples)
        num_of_prompt = Counted(one.prompt for one in samples)
        now = time.time()
        for one in samples:
            # Samples of a prompt that come one by one are put together by their prompt.
            request = window.num_requests if num_of_prompt[one.prompt] > 1 else 0
            record = RewardRecord(
                (request, hash(one.prompt)),
                one.num_characters,
                one.reward,
                one.z,
                one.parts,
                one.admitted,
                one.truncated,
                one.omitted,
            )
            window.samples.append(RecentSample(record, now, one.texts))
            for part in one.omitted:
                self._omitted.labels(recipe, omitted_part(part)).inc()
        self._show_components(recipe, window, samples)
        window.num_unread += len(samples)
        if window.num_unread >= _MAX_UNREAD:
            _read_drift(window)

    def _show_components(
        self, recipe: str, window: _Window, samples: Sequence[RewardObservation]
    ) -> None:
        """Give each component that the recipe's rewards add up from its gauge."""
        found = {name for one in samples for name in one.parts or ()}
        for component in found - window.components:
            self._show_component(recipe, component)
        if found and not window.components:
            self._show_component(recipe, RULE)
        window.components |= found

    def _show_component(self, recipe: str, component: str) -> None:
        self._show(
            self._variance, lambda one: one.variance_shares.get(component), recipe, component
        )

    def _figures(self, recipe: str) -> GamingFigures:
        """Return the figures of the recipe's window, computed anew if it has new samples."""
        with self._lock:
            window = self._windows.get(recipe, _Window())
            num_samples, figures = window.figures
            if num_samples == window.num_samples:
                return figures
            num_samples = window.num_samples
            records = [one.record for one in window.samples]
        figures = figures_of(records)
        with self._lock:
            window.figures = (num_samples, figures)
        return figures

    def _drift_of(self, recipe: str, direction: str) -> float:
        with self._lock:
            window = self._windows[recipe]
            _read_drift(window)
            return window.drift.up if direction == "up" else window.drift.down

    def _observe_total(self, recipe: str, samples: Sequence[RewardObservation]) -> None:
        labels = (recipe,)
        rewards = [one.reward for one in samples]
        holistic = [one.z for one in samples]
        lengths = [one.num_characters for one in samples]
        _observe(self._reward.labels(recipe), rewards)
        _observe(self._holistic.labels(recipe), holistic)
        _observe(self._length.labels(recipe), lengths)
        self._correlate(self._by_length, self._reward_mean, labels, rewards, lengths)
        self._correlate(self._holistic_by_length, self._holistic_mean, labels, holistic, lengths)
        num_admitted = sum(one.admitted for one in samples)
        self._admitted.labels(recipe, "true").inc(num_admitted)
        self._admitted.labels(recipe, "false").inc(len(samples) - num_admitted)
        self._truncated.labels(recipe).inc(sum(one.truncated for one in samples))

    def _observe_aspect(
        self, recipe: str, aspect: str, samples: Sequence[RewardObservation]
    ) -> None:
        labels = (recipe, aspect)
        every = [one.aspects[aspect] for one in samples]
        rewards = [one.reward for one in every]
        lengths = [one.num_characters for one in samples]
        _observe(self._aspect.labels(*labels), rewards)
        self._correlate(self._aspect_by_length, self._aspect_mean, labels, rewards, lengths)
        valued = [
            (one.aspects[aspect].mean, one.z) for one in samples if one.aspects[aspect].values
        ]
        means, holistic = [mean for mean, _ in valued], [z for _, z in valued]
        self._correlate(self._aspect_by_holistic, self._value_mean, labels, means, holistic)
        shaped = [value for one in every if one.is_sigmoid for value in one.values]
        if shaped:
            self._shaped.labels(*labels).inc(len(shaped))
            self._saturated.labels(*labels, "low").inc(sum(value < _LOW for value in shaped))
            self._saturated.labels(*labels, "high").inc(sum(value > _HIGH for value in shaped))

    def _correlate(
        self,
        correlation: Gauge,
        mean: Gauge,
        labels: tuple[str, ...],
        xs: Sequence[float],
        ys: Sequence[float],
    ) -> None:
        if not xs:
            return
        key = (correlation, mean, labels)
        if key not in self._running:
            self._running[key] = RunningCorrelation(_HALF_LIFE, _MIN_PAIRS)
        running = self._running[key]
        for x, y in zip(xs, ys, strict=True):
            running.add(x, y)


def _observe(histogram: Histogram, values: Sequence[float]) -> None:
    for value in values:
        histogram.observe(value)


def _read_drift(window: _Window) -> None:
    """Add the groups that came since the last time to the drift."""
    num_old = max(0, len(window.samples) - window.num_unread)
    unread = [one.record for one in islice(window.samples, num_old, None)]
    window.num_unread = 0
    for z in holistic_of_groups(unread):
        window.drift.add(z)
