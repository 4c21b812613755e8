"""Which keys the reads of a row see, put together for samples of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from alarm_models.packing.layout import Layout
from alarm_models.sample import Span

__all__ = ["Reading", "readings"]

#: The most keys gathered at once: beyond, copying them costs more than the calls it saves.
_MAX_KEYS = 8192

#: How much longer than the shortest sample of a reading the longest may be, and tokens beside.
_MAX_WASTE, _FREE_TOKENS = 1.25, 8


class Reading(NamedTuple):
    """Some samples' reads, and the keys that they look among.

    ``queries`` is ``[samples, reads]``, numbers of reads; ``keys`` is ``[samples, keys]``, where
    keys stand; ``mask``, ``[samples, 1, reads, keys]``, is true where a read sees a key, None for
    all.
    Where samples differ in number the last read and the first key are repeated.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


class _Sample(NamedTuple):
    queries: list[int]
    keys: list[int]
    #: The keys that each read sees, as a span of ``keys``.
    seen: list[Span]


def readings(
    layout: Layout,
    reads: Sequence[tuple[int, int]],
    *,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Iterator[Reading]:
    """Yield readings that together cover all reads, (sample, place in it), sorted by sample.

    ``window`` counts the tokens that a token sees on a side, itself among them.
    """
    samples = [
        _sample(layout, sample, list(numbered), causal, window)
        for sample, numbered in groupby(enumerate(reads), key=lambda read: read[1][0])
    ]
    samples.sort(key=lambda sample: len(sample.keys))
    together: list[_Sample] = []
    for sample in samples:
        if together and not _fits(together, sample):
            yield _reading(together, device)
            together = []
        together.append(sample)
    if together:
        yield _reading(together, device)


def _sample(
    layout: Layout,
    sample: int,
    numbered: Sequence[tuple[int, tuple[int, int]]],
    causal: bool,
    window: int | None,
) -> _Sample:
    places = [place for _, (_, place) in numbered]
    length = max(places) + 1 if causal else layout.length(sample)
    reach = length if window is None else window
    seen = [
        Span(max(place + 1 - reach, 0), place + 1 if causal else min(place + reach, length))
        for place in places
    ]
    keys = layout.keys(sample, Span(0, length))
    return _Sample([number for number, _ in numbered], keys, seen)


def _fits(together: Sequence[_Sample], sample: _Sample) -> bool:
    num_keys = len(sample.keys)
    return (
        num_keys <= _MAX_WASTE * len(together[0].keys) + _FREE_TOKENS
        and num_keys * (len(together) + 1) <= _MAX_KEYS
    )


def _reading(samples: Sequence[_Sample], device: torch.device) -> Reading:
    num_reads = max(len(sample.queries) for sample in samples)
    num_keys = len(samples[-1].keys)
    queries, keys, seen = [], [], []
    for sample in samples:
        more = num_reads - len(sample.queries)
        queries.append(sample.queries + sample.queries[-1:] * more)
        seen.append(sample.seen + sample.seen[-1:] * more)
        keys.append(sample.keys + sample.keys[:1] * (num_keys - len(sample.keys)))
    mask = None
    if any(span != (0, num_keys) for spans in seen for span in spans):
        place = torch.arange(num_keys, device=device)
        low, high = torch.tensor(seen, device=device).unsqueeze(-1).unbind(-2)
        mask = ((place >= low) & (place < high)).unsqueeze(1)
    return Reading(torch.tensor(queries, device=device), torch.tensor(keys, device=device), mask)
