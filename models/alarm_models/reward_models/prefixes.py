"""Prefix scores: a completion cut after each segment, ended by the template, scored in one pass.

The prefixes are token sequences of one input. A network that shares prefixes computes their common
part once. Each prefix then adds only the tokens that end it, and the few before the cut that are
tokenized differently there.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from alarm_models.errors import SampleError
from alarm_models.modeling.inputs import BatchLayout, ModelInput, split_sequences
from alarm_models.modeling.packed.batch import pack
from alarm_models.modeling.packed.prefix_cache import common_prefix_length
from alarm_models.preprocessing.segmentation import find_segments
from alarm_models.preprocessing.templates import Rendered
from alarm_models.preprocessing.truncation import TokenIds, without_prompt_start
from alarm_models.reward_models.base import Prepared
from alarm_models.reward_models.text_pipeline import TextPipeline
from alarm_models.types import Message, Sample, Score, Span

__all__ = [
    "MAX_PREFIXES",
    "PrefixPipeline",
    "cut_completion",
    "merge_segments",
    "num_shared_tokens",
    "read_with_prefixes",
    "segments_of",
]

#: Maximum number of prefixes of a completion; if there are more, neighboring segments are merged.
MAX_PREFIXES = 64

#: Characters of prefixes that are tokenized at once, unless a single prefix is longer: tokenization
#: takes about a hundred times the memory of the text.
_CHUNK_CHARS = 256 << 10

#: The blank line that `Sample.completion_text` puts between messages.
_LEN_JOINT = 2

#: Tokens by which a prompt's end may differ, since the text after it may merge with it or not.
_MAX_SHIFT = 2


def segments_of(sample: Sample, segmenter: str) -> tuple[Span, ...]:
    """Return the segments after which a completion is cut: the sample's own, or those found.

    They end in messages that the policy wrote. What a tool or a user message adds to the score is
    part of the next segment's difference.
    """
    spans = find_segments(sample, segmenter)
    if not isinstance(sample.completion, str):
        spans = _within(spans, _turns(sample.completion))
    return merge_segments(spans, MAX_PREFIXES)


def _turns(messages: Sequence[Message]) -> list[Span]:
    """Return the texts of messages that the policy wrote; of all messages if it wrote none."""
    has_policy = any(message.is_of_policy for message in messages)
    turns = []
    start = 0
    for message in messages:
        end = start + len(message.text)
        if message.is_of_policy or not has_policy:
            turns.append(Span(start, end))
        start = end + _LEN_JOINT
    return turns


def _within(spans: Sequence[Span], turns: Sequence[Span]) -> tuple[Span, ...]:
    """Return the spans trimmed to the turns that they overlap."""
    texts = [turn for turn in turns if turn.start < turn.end]
    starts = [turn.start for turn in texts]
    ends = [turn.end for turn in texts]
    found = []
    for start, end in spans:
        first, behind = bisect_right(ends, start), bisect_left(starts, end)
        if first < behind:
            found.append(Span(max(start, starts[first]), min(end, ends[behind - 1])))
    return tuple(found)


def merge_segments(spans: Sequence[Span], most: int) -> tuple[Span, ...]:
    """Merge neighbors evenly into at most ``most`` spans."""
    if len(spans) <= most:
        return tuple(spans)
    bounds = [len(spans) * number // most for number in range(most + 1)]
    return tuple(Span(spans[first].start, spans[end - 1].end) for first, end in pairwise(bounds))


def cut_completion(sample: Sample, end: int) -> Sample:
    """Return the sample with the first ``end`` characters of its completion, and no spans.

    If the completion has several messages, the first is kept even if it becomes empty.
    """
    if isinstance(sample.completion, str):
        completion: str | tuple[Message, ...] = sample.completion[:end]
    else:
        kept: list[Message] = []
        start = 0
        for message in sample.completion:
            if kept and start >= end:
                break
            kept.append(_cut_message(message, max(end - start, 0)))
            start += len(message.text) + _LEN_JOINT
        completion = tuple(kept)
    return replace(
        sample, completion=completion, token_offsets=None, segments={}, prefix_segmenter=None
    )


def _cut_message(message: Message, length: int) -> Message:
    """Return the first ``length`` characters of a message; tool calls only if it is whole."""
    if length >= len(message.text):
        return message
    start = len(message.text) - len(message.content)
    content = message.content[: max(length - start, 0)]
    return replace(message, reasoning=message.reasoning[:length], content=content, tool_calls=())


def num_shared_tokens(sequences: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that a packed batch of these sequences need not compute."""
    return sum(map(len, sequences)) - len(pack(sequences, share=True).ids)


def read_with_prefixes(
    features: ModelInput, outputs: torch.Tensor, read: Callable[[ModelInput, torch.Tensor], Score]
) -> Score:
    """Read the score of each token sequence, and return the first with the others as prefixes."""
    sequences = split_sequences([features])
    rows = torch.split(outputs, [one.num_reads for one in sequences])
    whole, *prefixes = (read(*one) for one in zip(sequences, rows, strict=True))
    return replace(whole, num_tokens=features.num_tokens).with_prefixes(prefixes, features.segments)


@dataclass(frozen=True, slots=True)
class PrefixPipeline:
    """Prepares samples, with their prefixes if these are requested (`prefix_segmenter`).

    ``render`` and ``features`` are as in `TextPipeline.prepare`; ``cost`` is that of the network.
    """

    texts: TextPipeline
    render: Callable[[Sample], Rendered | Score]
    features: Callable[[TokenIds, bool], ModelInput]
    cost: BatchLayout

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Prepare samples; those without prefixes are prepared together."""
        plain = [sample for sample in samples if sample.prefix_segmenter is None]
        prepared = iter(self.texts.prepare(plain, self.render, self.features))
        return [
            next(prepared) if sample.prefix_segmenter is None else self._with_prefixes(sample)
            for sample in samples
        ]

    def _with_prefixes(self, sample: Sample) -> Prepared:
        fitted: list[TokenIds] = []

        def features(tokens: TokenIds, truncated: bool) -> ModelInput:
            fitted.append(tokens)
            return self.features(tokens, truncated)

        (whole,) = self.texts.prepare([sample], self.render, features)
        spans = segments_of(sample, sample.prefix_segmenter or "")
        if not isinstance(whole, ModelInput) or not spans:
            return whole
        ends = [0, *(span.end for span in spans[:-1])]
        inputs: list[ModelInput] = []
        for some in _in_chunks([cut_completion(sample, end) for end in ends]):
            for one in self.texts.prepare(some, self.render, self._like(fitted[0], whole)):
                if isinstance(one, ModelInput):
                    inputs.append(one)
                elif isinstance(one, SampleError):
                    end = ends[len(inputs)]
                    return SampleError(one.code, f"its first {end} characters: {one.message}")
        sequences = [whole.sequences[0], *(one.sequences[0] for one in inputs)]
        joined = replace(
            ModelInput.of_sequences(sequences, truncated=whole.truncated, segments=spans),
            omitted=whole.omitted,
        )
        if self.cost is not BatchLayout.PREFIX_SHARED:
            return joined
        return replace(joined, num_shared=num_shared_tokens(joined.ids_of_sequences))

    def _like(self, tokens: TokenIds, whole: ModelInput) -> Callable[[TokenIds, bool], ModelInput]:
        """Return a function that makes features of a prefix with the same part of the prompt.

        ``tokens`` are those of the whole completion, truncated to the model's limit. A prefix would
        have room for more of a prompt that is too long, but its score would be of another prompt.
        """

        def features(prefix: TokenIds, truncated: bool) -> ModelInput:
            if whole.truncated:
                prefix = _with_prompt_of(prefix, tokens)
            return self.features(prefix, truncated or whole.truncated)

        return features


def _with_prompt_of(prefix: TokenIds, whole: TokenIds) -> TokenIds:
    """Drop the start of a prefix's prompt until it begins where that of the whole text does."""
    length = prefix.prompt.end - prefix.prompt.start
    excess = length - (whole.prompt.end - whole.prompt.start)
    candidates = [
        without_prompt_start(prefix, count)
        for count in range(max(excess - _MAX_SHIFT, 0), min(excess + _MAX_SHIFT, length) + 1)
    ]
    return max(candidates or [prefix], key=lambda one: common_prefix_length(one.ids, whole.ids, 0))


def _in_chunks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yield chunks of prefixes, shortest first, to be tokenized at once."""
    chunk: list[Sample] = []
    num_chars = 0
    for sample in samples:
        own = len(sample.prompt_text) + len(sample.completion_text)
        if chunk and num_chars + own > _CHUNK_CHARS:
            yield chunk
            chunk, num_chars = [], 0
        chunk.append(sample)
        num_chars += own
    if chunk:
        yield chunk
