"""Which replica takes a slot's work: its own, unless that one has far more than the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

__all__ = ["placed", "ranked"]

#: A replica takes work up to so many times the mean of all.
_BOUND = 1.25

#: Below a batch of work nothing is won by going elsewhere.
_LEAST_TOKENS = 8192


@lru_cache(maxsize=4096)
def ranked(slot: int, replicas: frozenset[str]) -> Sequence[str]:
    """Return the replicas in the order in which the slot prefers them.

    Rendezvous hashing (Thaler and Ravishankar, 1998): when a replica comes or goes, only the slots
    that are its own move.
    """
    return sorted(replicas, key=lambda name: hashlib.blake2b(f"{slot} {name}".encode()).digest())


def placed(slot: int, num_tokens: int, loads: Mapping[str, int], num_passed: int = 0) -> str:
    """Choose the replica for a slot's work; ``loads`` are the tokens that each has under way.

    The first of its ranking that stays within the bound of consistent hashing with bounded loads
    (Mirrokni, Thorup and Zadimoghaddam, 2018). ``num_passed`` replicas have failed this work and
    come last.
    """
    order = ranked(slot, frozenset(loads))
    start = num_passed % len(order)
    order = [*order[start:], *order[:start]]
    mean = (sum(loads.values()) + num_tokens) / len(loads)
    most = max(_BOUND * mean, _LEAST_TOKENS)
    fitting = (name for name in order if not loads[name] or loads[name] + num_tokens <= most)
    return next(fitting, min(order, key=lambda name: loads[name]))
