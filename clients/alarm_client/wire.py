"""Samples to request bodies: encoded once each, then split under the server's limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from alarm_client.answers import read_rewards, read_scores
from alarm_client.cutting import cut, middle
from alarm_client.joining import merge_rewards, merge_scores
from alarm_client.types import (
    Aspects,
    Limits,
    Offsets,
    Overrides,
    RewardResult,
    Sample,
    SampleLike,
    ScoreResult,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """Samples for one endpoint, and how to read and join its answers.

    `encoded` holds the JSON of each sample; `head` opens the body up to the list of samples.
    """

    path: str
    head: bytes
    samples: tuple[Sample, ...]
    encoded: tuple[bytes, ...]
    read: Callable[[bytes, Sequence[Sample]], T]
    merge: Callable[[Sequence[T]], T]

    @property
    def body(self) -> bytes:
        """The whole request body."""
        return self.head + b",".join(self.encoded) + b"]}"

    @property
    def num_bytes(self) -> int:
        """How long the body is, without building it."""
        return len(self.head) + sum(map(len, self.encoded)) + max(0, len(self.encoded) - 1) + 2

    def part(self, start: int, end: int) -> Job[T]:
        """The same job for some of the samples."""
        return replace(self, samples=self.samples[start:end], encoded=self.encoded[start:end])


def score_job(samples: Sequence[SampleLike], model: str | None) -> Job[ScoreResult]:
    """A call of `/score`."""
    own = as_samples(samples)
    head = _head({"model": model})
    return Job("/score", head, own, _encode(own), read_scores, merge_scores)


def reward_job(
    samples: Sequence[SampleLike],
    recipe: str | None,
    overrides: Overrides | None,
    aspects: Aspects,
) -> Job[RewardResult]:
    """A call of `/hierarchical_reward`."""
    own = as_samples(samples)
    head = _head({"recipe": recipe, "overrides": overrides, "aspects": aspects})
    return Job("/hierarchical_reward", head, own, _encode(own), read_rewards, merge_rewards)


def as_samples(samples: Sequence[SampleLike]) -> tuple[Sample, ...]:
    """The samples as `Sample`; a mapping must have a Sample's own keys."""
    return tuple(
        sample if isinstance(sample, Sample) else Sample(**sample)  # type: ignore[arg-type]  # checked by the server
        for sample in samples
    )


def fits(job: Job[T], limits: Limits) -> bool:
    """Whether one request may hold the whole job."""
    return len(job.samples) <= limits.max_samples and job.num_bytes <= limits.max_body_bytes


def split(job: Job[T], limits: Limits) -> list[Job[T]]:
    """The job in parts under the limits, in order and of about one size, groups whole.

    A single sample over the limits is a part of its own: only the server can refuse it.
    """
    num_parts = max(
        -(-len(job.samples) // limits.max_samples), -(-job.num_bytes // limits.max_body_bytes), 1
    )
    most = -(-len(job.samples) // num_parts)
    # Each sample with the comma before it; the first has none.
    room = limits.max_body_bytes - len(job.head) - 1
    sizes = [len(piece) + 1 for piece in job.encoded]
    groups = [sample.group for sample in job.samples]
    parts = cut(groups, sizes, most, limits.max_samples, room)
    return [job.part(start, end) for start, end in parts]


def halved(job: Job[T]) -> tuple[Job[T], Job[T]]:
    """The job in two, between groups where it has several."""
    at = middle([sample.group for sample in job.samples])
    return job.part(0, at), job.part(at, len(job.samples))


def _head(options: Mapping[str, object]) -> bytes:
    given = {name: value for name, value in options.items() if value is not None}
    return _dump(given)[:-1] + (b"," if given else b"") + b'"samples":['


def _encode(samples: Sequence[Sample]) -> tuple[bytes, ...]:
    return tuple(_dump(_present(sample)) for sample in samples)


def _present(sample: Sample) -> dict[str, object]:
    optional: dict[str, object] = {
        "fields": None if sample.fields is None else dict(sample.fields),
        "token_offsets": None if sample.token_offsets is None else _pairs(sample.token_offsets),
        "segments": None
        if sample.segments is None
        else {name: _pairs(spans) for name, spans in sample.segments.items()},
        "id": sample.id,
        "group": sample.group,
    }
    return {
        "prompt": _plain(sample.prompt),
        "completion": _plain(sample.completion),
        **{name: value for name, value in optional.items() if value is not None},
    }


def _plain(text: object) -> object:
    if isinstance(text, str) or not isinstance(text, Sequence):
        return text
    return [dict(message) for message in text]


def _pairs(spans: Offsets) -> list[list[int]]:
    return [[int(start), int(end)] for start, end in spans]


def _dump(value: object) -> bytes:
    # "replace": half a surrogate pair cannot travel; one "?" for it keeps every offset in place.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
