"""Samples cut into what is sent to a replica in one call: a prompt's stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from alarm_models.sample import Sample
from alarm_service.scheduling.admission import estimate_tokens

__all__ = ["NUM_SLOTS", "Chunk", "chunks", "slot_of"]

#: Prompts are spread over so many slots, and slots over replicas: a request is at most so many
#: calls and some, and a slot is small enough to be moved.
NUM_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples of one slot, by their places in the request; ``num_tokens`` is an estimate."""

    slot: int
    indices: Sequence[int]
    num_tokens: int


def slot_of(sample: Sample) -> int:
    """Return the slot of a sample's prompt: the same in every process and every request."""
    digest = hashlib.blake2b(sample.prompt_text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % NUM_SLOTS


def chunks(samples: Sequence[Sample], max_tokens: int) -> list[Chunk]:
    """Cut samples by slot, and a slot's samples where they have more than ``max_tokens``.

    Samples of one prompt stand next to each other, in the order they came.
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
