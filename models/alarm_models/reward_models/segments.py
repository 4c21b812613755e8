"""Kind `segments`: a label and score per segment, read at the separator before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import CheckpointError, RecipeError, SampleError
from alarm_models.modeling.inputs import ModelInput
from alarm_models.modeling.loader import token_classifier
from alarm_models.preprocessing.read_text import ReadText, dropped_tokens
from alarm_models.preprocessing.segmentation import (
    SegmentedIds,
    SegmentedText,
    find_segments,
    split_words,
)
from alarm_models.preprocessing.templates import FieldPattern, Rendered, TextTemplate
from alarm_models.preprocessing.truncation import TokenIds, Truncation, fit
from alarm_models.recipe.specs import SegmentsSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    max_tokens,
    require_finite,
    require_token_types,
)
from alarm_models.reward_models.registry import head_or, neural_kind
from alarm_models.types import Sample, Score, SegmentScore, Span

__all__ = ["SegmentsModel"]


@neural_kind(SegmentsSpec, load_network=head_or(token_classifier))
class SegmentsModel(NeuralRewardModel):
    """A token classifier over ``prefix <sep> segment <sep> segment ...`` (FineGrainedRLHF's form).

    Text is split on white space before it is tokenized. Separators are inserted by id and located
    by position, so a separator that occurs in a text has no effect.
    """

    def __init__(
        self,
        spec: SegmentsSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        require_token_types(spec, weights.network)
        self._max_tokens = max_tokens(spec, weights)
        self._spec = spec
        self._weights = weights
        self._template = TextTemplate(spec.template, fields=fields)
        if "completion" in self._template.names:
            raise RecipeError(
                "the template of kind `segments` precedes the completion and must not contain it"
            )
        self._separator = weights.tokenizer.separator_id(spec.separator)
        self._positive = self._label_index(spec.positive_label)
        self._negative = self._label_index(spec.negative_label)

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Find the segments, tokenize prefix and segments by words, and truncate."""
        parts: dict[int, SegmentedText] = {}
        prepared: dict[int, Prepared] = {}
        for index, sample in enumerate(samples):
            check_cancelled()
            try:
                segments = find_segments(sample, self._spec.segmenter)
                if segments:
                    prefix = self._template.render(sample)
                    if self._spec.truncation is Truncation.PROMPT:
                        prefix = self._tokenizer.shorten_words(prefix, self._max_tokens)
                    parts[index] = self._split(prefix, sample, segments)
                else:
                    prepared[index] = Score(None, (), 0, False)
            except SampleError as error:
                prepared[index] = error
        encoded = self._tokenizer.encode_words([part.words for part in parts.values()])
        for (index, part), (ids, owners) in zip(parts.items(), encoded, strict=True):
            prepared[index] = self._features(part, ids, owners)
        return [prepared[index] for index in range(len(samples))]

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Return a margin per segment; the score is the share of positive ones (as in the paper).

        Only the two labels are compared; a tie is negative.
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

    def _texts_of(self, sample: Sample, _features: ModelInput) -> tuple[ReadText, ...]:
        segments = find_segments(sample, self._spec.segmenter)
        prefix = self._template.render(sample)
        part = self._split(prefix, sample, segments)
        ((ids, owners),) = self._tokenizer.encode_words([part.words])
        tokens, joined = self._joined(part, ids, owners)
        dropped = dropped_tokens(tokens, self._max_tokens, self._spec.truncation)
        start = joined.separators[0] + tokens.num_prefix
        completion = Span(start, len(tokens.ids) - tokens.num_suffix)
        return (ReadText(tokens.ids, completion, dropped),)

    def _split(self, prefix: Rendered, sample: Sample, segments: tuple[Span, ...]) -> SegmentedText:
        marking = self._spec.mark_copied
        question = self._template.question(sample) if marking == "support" else ""
        return split_words(prefix, sample, segments, marking, question)

    def _joined(
        self, part: SegmentedText, ids: Sequence[int], owners: Sequence[int]
    ) -> tuple[TokenIds, SegmentedIds]:
        """Insert the separators and add the special tokens, before truncation."""
        joined = part.insert_separators(ids, owners, self._separator)
        tokenizer = self._tokenizer
        shift = tokenizer.num_prefix
        types: tuple[int, ...] = ()
        if self._spec.mark_copied:
            types = (*[0] * shift, *joined.token_type_ids, *[0] * tokenizer.num_suffix)
        tokens = TokenIds(
            tuple(tokenizer.with_special(joined.ids)),
            Span(joined.prompt.start + shift, joined.prompt.end + shift),
            tokenizer.num_prefix,
            tokenizer.num_suffix,
            types,
        )
        return tokens, joined

    def _features(
        self, part: SegmentedText, ids: Sequence[int], owners: Sequence[int]
    ) -> ModelInput | SampleError:
        tokens, joined = self._joined(part, ids, owners)
        try:
            kept, truncated = fit(tokens, self._max_tokens, self._spec.truncation)
        except SampleError as error:
            return error
        shift = tokens.num_prefix - (tokens.prompt.end - kept.prompt.end)
        end = len(kept.ids) - tokens.num_suffix
        starts = [at + shift for at in joined.separators if at + shift < end]
        if not starts:
            return SampleError("too_long", "truncation removes all segments of the completion")
        return ModelInput(
            kept.ids, self._reads(starts, end), truncated, part.segments, kept.token_type_ids
        )

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
                f"{self._spec.checkpoint} has the labels {list(names)}, not {label!r}; list its "
                f"{self._weights.network.num_outputs} labels in order in `labels`"
            )
        return self._spec.labels.index(label)
