"""Routing and autoscaling policy: slots, rendezvous hashing, bounded loads. Pure functions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from alarm_models.types import Sample
from alarm_service.engine.admission import estimate_tokens

__all__ = [
    "NUM_SLOTS",
    "QUEUED_TOKENS",
    "ByQueuedTokens",
    "Chunk",
    "choose_replica",
    "chunks",
    "desired_replicas",
    "rendezvous_order",
    "slot_of",
]

#: A replica takes work up to this multiple of the mean load.
_BOUND = 1.25

#: Below one batch of work, another replica would not be faster.
_LEAST_TOKENS = 8192


@lru_cache(maxsize=4096)
def rendezvous_order(slot: int, replicas: frozenset[str]) -> Sequence[str]:
    """Return the replicas in the order in which the slot prefers them.

    Rendezvous hashing (Thaler and Ravishankar, 1998): when a replica is added or removed, only
    its own slots move.
    """
    return sorted(replicas, key=lambda name: hashlib.blake2b(f"{slot} {name}".encode()).digest())


def choose_replica(
    slot: int, num_tokens: int, loads: Mapping[str, int], num_passed: int = 0
) -> str:
    """Choose the replica for a slot's work; ``loads`` are the tokens in flight at each.

    The first of its ranking that stays within the bound of consistent hashing with bounded loads
    (Mirrokni, Thorup and Zadimoghaddam, 2018). ``num_passed`` replicas have failed this work and
    come last.
    """
    order = rendezvous_order(slot, frozenset(loads))
    start = num_passed % len(order)
    order = [*order[start:], *order[:start]]
    mean = (sum(loads.values()) + num_tokens) / len(loads)
    most = max(_BOUND * mean, _LEAST_TOKENS)
    fitting = (name for name in order if not loads[name] or loads[name] + num_tokens <= most)
    return next(fitting, min(order, key=lambda name: loads[name]))


#: Number of slots over which prompts are distributed, and which are distributed over replicas: it
#: bounds the calls of a request, and a slot is small enough to be moved.
NUM_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples of one slot, as indices in the request; ``num_tokens`` is an estimate."""

    slot: int
    indices: Sequence[int]
    num_tokens: int


def slot_of(sample: Sample) -> int:
    """Return the slot of a sample's prompt, which is stable across processes and requests."""
    digest = hashlib.blake2b(sample.prompt_text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % NUM_SLOTS


def chunks(samples: Sequence[Sample], max_tokens: int) -> list[Chunk]:
    """Split samples by slot, and the samples of a slot into chunks of at most ``max_tokens``.

    Samples of one prompt are adjacent, in their order.
    """
    by_slot: dict[int, dict[object, list[int]]] = {}
    for index, sample in enumerate(samples):
        by_slot.setdefault(slot_of(sample), {}).setdefault(sample.prompt, []).append(index)
    return [
        chunk
        for slot, prompts in by_slot.items()
        for chunk in _cut(
            slot, [one for group in prompts.values() for one in group], samples, max_tokens
        )
    ]


def _cut(
    slot: int, indices: Sequence[int], samples: Sequence[Sample], max_tokens: int
) -> list[Chunk]:
    cut: list[Chunk] = []
    taken: list[int] = []
    total = 0
    for index in indices:
        num_tokens = estimate_tokens([samples[index]])
        if taken and total + num_tokens > max_tokens:
            cut.append(Chunk(slot, taken, total))
            taken, total = [], 0
        taken.append(index)
        total += num_tokens
    return [*cut, Chunk(slot, taken, total)]


#: The metric that replicas report to Ray's autoscaler.
QUEUED_TOKENS = "queued_tokens"


def desired_replicas(queued_tokens: Iterable[float], tokens_per_replica: int) -> int:
    """Return the replicas that would have at most ``tokens_per_replica`` each; one at least."""
    return max(1, math.ceil(sum(queued_tokens) / tokens_per_replica))


class ByQueuedTokens:
    """Ray Serve's autoscaling policy; Serve itself applies the bounds and the delays."""

    def __init__(self, tokens_per_replica: int) -> None:
        self._tokens_per_replica = tokens_per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Decide by the mean of what each replica reported over the look-back period."""
        reported = (context.aggregated_metrics or {}).get(QUEUED_TOKENS, {})
        if not reported:  # replicas that have just started have not reported yet
            return context.target_num_replicas, {}
        return desired_replicas(reported.values(), self._tokens_per_replica), {}
