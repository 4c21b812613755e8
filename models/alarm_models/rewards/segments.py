"""Kind `segments`: a judgement of each segment, read at the separator before it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.features import Features
from alarm_models.rewards.base import Prepared, Weights, max_tokens, require_finite
from alarm_models.sample import Sample, Score, SegmentScore, Span
from alarm_models.segmentation import SEGMENTERS
from alarm_models.specs import SegmentsSpec
from alarm_models.template import FieldPattern, Rendered, TextTemplate
from alarm_models.truncation import TokenIds, fit

__all__ = ["SegmentsModel"]

_WORD = re.compile(r"\S+")


class SegmentsModel:
    """A token classifier over ``prefix <sep> segment <sep> segment ...`` (FineGrainedRLHF's form).

    Text is split on white space before it is tokenised. Separators are put in by id and counted by
    position, so a separator that stands in a text shifts nothing.
    """

    def __init__(
        self,
        spec: SegmentsSpec,
        weights: Weights,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        self.fingerprint = fingerprint
        self.limit: int | None = max_tokens(spec, weights)
        self._max_tokens = self.limit
        self._spec = spec
        self._weights = weights
        self._template = TextTemplate(spec.template, fields=fields)
        if "completion" in self._template.names:
            raise RecipeError("the template of kind `segments` stands before the completion")
        self._separator = weights.tokenizer.separator_id(spec.separator)
        self._positive = self._label_index(spec.positive_label)
        self._negative = self._label_index(spec.negative_label)

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Find the segments, tokenise prefix and segments by words, and shorten."""
        parts: dict[int, _Parts] = {}
        prepared: dict[int, Prepared] = {}
        for index, sample in enumerate(samples):
            try:
                segments = self._segments(sample)
                if segments:
                    parts[index] = _split_words(self._template.render(sample), sample, segments)
                else:
                    prepared[index] = Score(None, (), 0, False)
            except SampleError as error:
                prepared[index] = error
        encoded = self._weights.tokenizer.encode_words([part.words for part in parts.values()])
        for (index, part), (ids, owners) in zip(parts.items(), encoded, strict=True):
            prepared[index] = self._features(part, ids, owners)
        return [prepared[index] for index in range(len(samples))]

    def forward(self, batch: Sequence[Features]) -> list[torch.Tensor]:
        """Run one padded batch."""
        return self._weights.network.outputs(batch)

    def read(self, features: Features, outputs: torch.Tensor) -> Score:
        """Read a margin a segment; the score is the share of positive segments (the paper's rate).

        The decision is between the two labels alone; a tie is negative.
        """
        margins = (outputs[:, self._positive] - outputs[:, self._negative]).tolist()
        require_finite(margins)
        read, unread = features.segments[: len(margins)], features.segments[len(margins) :]
        scores = [self._segment_score(*one) for one in zip(read, margins, strict=True)]
        scores += [SegmentScore(span, None, None, None) for span in unread]
        share = sum(margin > 0 for margin in margins) / len(margins)
        return Score(share, tuple(scores), features.num_tokens, features.truncated)

    def _segment_score(self, span: Span, margin: float) -> SegmentScore:
        positive = margin > 0
        label = self._spec.positive_label if positive else self._spec.negative_label
        return SegmentScore(span, label, margin, positive)

    def _segments(self, sample: Sample) -> tuple[Span, ...]:
        text, name = sample.completion_text, self._spec.segmenter
        given = sample.segments.get(name)
        return SEGMENTERS[name](text) if given is None else given

    def _features(
        self, part: _Parts, ids: Sequence[int], owners: Sequence[int]
    ) -> Features | SampleError:
        laid, separators, prompt = part.lay(ids, owners, self._separator)
        tokenizer = self._weights.tokenizer
        whole = tuple(tokenizer.with_special(laid))
        shift = tokenizer.num_prefix
        tokens = TokenIds(
            whole,
            Span(prompt.start + shift, prompt.end + shift),
            tokenizer.num_prefix,
            tokenizer.num_suffix,
        )
        try:
            kept, truncated = fit(tokens, self._max_tokens, self._spec.truncation)
        except SampleError as error:
            return error
        shift -= tokens.prompt.end - kept.prompt.end
        end = len(kept.ids) - tokenizer.num_suffix
        starts = [at + shift for at in separators if at + shift < end]
        if not starts:
            return SampleError("too_long", "truncation leaves none of the completion's segments")
        return Features(kept.ids, self._reads(starts, end), truncated, part.segments)

    def _reads(self, starts: list[int], end: int) -> tuple[Span, ...]:
        if self._spec.pooling == "separator":
            return tuple(Span(start, start + 1) for start in starts)
        return tuple(Span(*pair) for pair in zip(starts, [*starts[1:], end], strict=True))

    def _label_index(self, label: str) -> int:
        names = self._weights.label_names
        if label in names:
            return names.index(label)
        if self._spec.labels is None or len(self._spec.labels) != self._weights.network.num_outputs:
            raise CheckpointError(
                f"{self._spec.checkpoint} names its labels {list(names)}, not {label!r}; list its "
                f"{self._weights.network.num_outputs} labels in order in `labels`"
            )
        return self._spec.labels.index(label)


class _Parts:
    """A sample's words: those before the segments, then each segment's."""

    def __init__(
        self,
        segments: tuple[Span, ...],
        prefix: list[str],
        prompt: Span,
        bodies: list[list[str]],
    ) -> None:
        self.segments = segments
        self.words = [*prefix, *(word for body in bodies for word in body)]
        self._prompt = prompt
        self._firsts: list[int] = []
        position = len(prefix)
        for body in bodies:
            self._firsts.append(position)
            position += len(body)

    def lay(
        self, ids: Sequence[int], owners: Sequence[int], separator: int
    ) -> tuple[list[int], list[int], Span]:
        """Put a separator before each segment; return ids, separators' places, the prompt's range.

        ``owners`` holds the word that each id came from.
        """
        laid: list[int] = []
        separators: list[int] = []
        inside: list[int] = []
        for token, owner in zip(ids, owners, strict=True):
            while len(separators) < len(self._firsts) and owner >= self._firsts[len(separators)]:
                separators.append(len(laid))
                laid.append(separator)
            if self._prompt.start <= owner < self._prompt.end:
                inside.append(len(laid))
            laid.append(token)
        while len(separators) < len(self._firsts):
            separators.append(len(laid))
            laid.append(separator)
        return laid, separators, Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)


def _split_words(prefix: Rendered, sample: Sample, segments: tuple[Span, ...]) -> _Parts:
    words = [Span(*match.span()) for match in _WORD.finditer(prefix.text)]
    inside = [
        index
        for index, word in enumerate(words)
        if prefix.prompt.start <= word.start and word.end <= prefix.prompt.end
    ]
    prompt = Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)
    text = sample.completion_text
    bodies = [text[span.start : span.end].split() for span in segments]
    return _Parts(segments, [prefix.text[w.start : w.end] for w in words], prompt, bodies)
