"""How many tokens a batch should have: found out by running batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from alarm_models.features import Features
from alarm_models.rewards import RewardModel
from alarm_models.sample import Sample

__all__ = ["LEAST_BUDGET", "gaining_tokens", "measured_budget"]

#: Where measuring starts and ends.
_FIRST, _LAST = 1024, 1 << 16

#: No budget is smaller unless the device is: a group with a long prompt should fit.
LEAST_BUDGET = 8192

#: A larger batch has to be this much faster a token.
_GAIN = 1.05

#: Callers of a batch wait for all of it; one that takes this long is long enough.
_LONGEST_S = 0.5


def measured_budget(model: RewardModel, sample: Sample) -> int:
    """Return the tokens of the largest batch that fits the device and still gains.

    ``sample`` is one that the model accepts; it is made longer and different each time.
    """
    features = _work(model, sample)
    if not features:
        return LEAST_BUDGET

    def seconds(num_tokens: int) -> float:
        batch: list[Features] = []
        left = num_tokens
        for one in features:
            if left > 0:
                batch.append(one)
                left -= one.num_tokens
        started = time.perf_counter()
        model.forward(batch)
        return time.perf_counter() - started

    most = min(_LAST, sum(one.num_tokens for one in features))
    return gaining_tokens(seconds, most)


def gaining_tokens(seconds: Callable[[int], float], most: int) -> int:
    """Double the tokens of a batch for as long as it fits, gains and does not take long.

    ``seconds`` runs a batch of that many tokens and says what it took; it may raise
    `torch.OutOfMemoryError`.
    """
    best, best_rate = _FIRST, 0.0
    num_tokens = _FIRST
    while num_tokens <= most:
        try:
            took = seconds(num_tokens)
        except torch.OutOfMemoryError:
            # Half of what did not fit, for samples that are less alike than these.
            return max(num_tokens // 4, _FIRST)
        rate = num_tokens / took
        if rate < best_rate * _GAIN:
            break
        best, best_rate = num_tokens, rate
        if took > _LONGEST_S:
            break
        num_tokens *= 2
    return max(best, LEAST_BUDGET)


def _work(model: RewardModel, sample: Sample) -> Sequence[Features]:
    """Prepare different samples of some 200 tokens, as many as the largest batch needs."""
    samples = [
        replace(sample, completion=f"{number} is the number here. " * 25)
        for number in range(_LAST // 200)
    ]
    return [one for one in model.prepare(samples) if isinstance(one, Features)]
