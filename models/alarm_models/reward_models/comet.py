"""Kind `comet`: a translation's score and its error spans, from one pass (xCOMET, CometKiwi)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import RecipeError, SampleError
from alarm_models.modeling.comet import CometNetwork
from alarm_models.modeling.inputs import ModelInput, TokenSequence
from alarm_models.modeling.loader import comet_network
from alarm_models.modeling.network import Network
from alarm_models.preprocessing.read_text import ReadText
from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.recipe.specs import CometSpec
from alarm_models.reward_models.base import (
    LoadedCheckpoint,
    NeuralRewardModel,
    Prepared,
    max_tokens,
    require_finite,
)
from alarm_models.reward_models.registry import CheckpointFiles, neural_kind
from alarm_models.types import Sample, Score, SegmentScore, Span

__all__ = ["CometModel"]

#: The tags after "no error", in the checkpoint's order.
_SEVERITIES = ("minor", "major", "critical")

#: MQM's points per error, and their maximum in total.
_MQM = {"minor": 1, "major": 5, "critical": 10}
_MQM_MOST = 25

#: xCOMET's weights of the scores with source, reference and both, and of the MQM score.
_SCORES = (0.12, 0.33, 0.33)
_MQM_WEIGHT = 0.22

#: xCOMET's weights of the tag probabilities, for the same three.
_TAGS = (0.1667, 0.3333, 0.5)


def _load_network(spec: CometSpec, files: CheckpointFiles) -> Network:
    return comet_network(files.source)


@neural_kind(CometSpec, load_network=_load_network)
class CometModel(NeuralRewardModel):
    """A metric that reads a translation with its source, its reference, and with both.

    Formulas are those of `XCOMETMetric` and `UnifiedMetric`. xCOMET's score is the weighted sum of
    the three scores (at most 1 each) and of the MQM score of the error spans. The score of other
    metrics is the mean of the three.
    """

    def __init__(
        self,
        spec: CometSpec,
        weights: LoadedCheckpoint,
        fields: Mapping[str, FieldPattern],
        fingerprint: str,
    ) -> None:
        super().__init__(spec, weights, fingerprint)
        if not isinstance(weights.network, CometNetwork):
            raise TypeError("kind `comet` is loaded as a CometNetwork")
        self._spec = spec
        form = weights.network.form
        self._is_x = form.class_identifier == "xcomet_metric"
        if spec.reference is not None and not form.has_reference:
            raise RecipeError(f"{spec.checkpoint} does not read a reference: remove `reference`")
        self._has_tags = weights.network.num_outputs == 1 + 1 + len(_SEVERITIES)
        self._max_tokens = max_tokens(spec, weights)
        self._source = TextTemplate(spec.source, fields=fields)
        self._reference = (
            None if spec.reference is None else TextTemplate(spec.reference, fields=fields)
        )

    def prepare_shown(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Tokenize translation, source and reference separately, and join them."""
        prepared: list[Prepared] = []
        for sample in samples:
            check_cancelled()
            try:
                prepared.append(self._features(sample))
            except SampleError as error:
                prepared.append(error)
        return prepared

    def _features(self, sample: Sample) -> ModelInput:
        others = [self._source.render(sample).text]
        if self._reference is not None:
            others.append(self._reference.render(sample).text)
        (ids, spans), *parts = (
            self._tokenizer.encode_alone(text) for text in (sample.completion_text, *others)
        )
        room = self._max_tokens - 2
        # Without special tokens, and each truncated at its end, as in COMET.
        middles = [one[1:-1][: room - 2] for one in (ids, *(part for part, _ in parts))]
        spans = (*spans[1:-1][: room - 2],)
        reads = tuple(Span(at, at + 1) for at in range(len(middles[0]) + 2))
        joined = [middles[:2]]
        joined += [[middles[0], middles[2]], middles] if len(middles) == 3 else []
        truncated = any(len(one) - 2 > room - 2 for one in (ids, *(part for part, _ in parts)))
        sequences = []
        for texts in joined:
            whole = self._joined(texts)
            truncated = truncated or len(whole) > self._max_tokens
            sequences.append(TokenSequence(whole[: self._max_tokens], reads))
        around = Span(0, 0)
        features = ModelInput.of_sequences(
            sequences, truncated=truncated, segments=(around, *spans, around)
        )
        if not truncated:
            return features
        name = "completion_end" if len(ids) > room else "prompt_end"
        return replace(features, omitted=(name,))

    def _texts_of(self, _sample: Sample, features: ModelInput) -> tuple[ReadText, ...]:
        """Return the joined texts, without what was truncated: the completion comes first."""
        num_read = len(features.segments) - 2
        return tuple(ReadText(ids, Span(1, 1 + num_read)) for ids in features.ids_of_sequences)

    def _cut_off(self, _features: ModelInput) -> set[str]:
        """Return nothing: the features name the text that was truncated."""
        return set()

    def _joined(self, texts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Join texts as XLM-R does: ``<s> a </s></s> b </s></s> c </s>``."""
        begin, end = self._tokenizer.with_special(())
        ids = [begin, *texts[0], end]
        for one in texts[1:]:
            ids += [end, *one, end]
        return tuple(ids)

    def read_shown(self, features: ModelInput, outputs: torch.Tensor) -> Score:
        """Read the scores, decode the error spans, and compute the weighted score."""
        by_sequence = outputs.reshape(len(features.sequences), len(features.segments), -1)
        scores = by_sequence[:, 0, 0].tolist()
        require_finite([*scores, float(outputs.sum())])
        names = ("src", "ref", "unified") if len(scores) == 3 else ("src",)
        named = dict(zip(names, scores, strict=True))
        spans: tuple[SegmentScore, ...] | None = None
        if self._has_tags:
            probabilities = by_sequence[:, :, 1:].softmax(-1)
            weights = probabilities.new_tensor(_TAGS if len(scores) == 3 else (1.0,))
            spans = self._errors(features.segments, (weights[:, None, None] * probabilities).sum(0))
        value = sum(scores) / len(scores)
        if self._is_x:
            counted = sum(_MQM[one.label] for one in spans or () if one.label is not None)
            named["mqm"] = (_MQM_MOST - min(counted, _MQM_MOST)) / _MQM_MOST
            capped = [min(one, 1.0) for one in scores]
            shares = _SCORES if len(capped) == 3 else (sum(_SCORES),)
            value = sum(one * share for one, share in zip(capped, shares, strict=True))
            value += named["mqm"] * _MQM_WEIGHT
        return Score(value, spans, features.num_tokens, features.truncated, outputs=named)

    def _errors(self, tokens: Sequence[Span], tags: torch.Tensor) -> tuple[SegmentScore, ...]:
        """Decode error spans from tag probabilities ``[tokens, tags]``.

        As in the published code, adjacent errors form one span with the severity of the first, and
        a span that has not ended at the last token is dropped.
        """
        found = []
        begun: tuple[int, str] | None = None
        end = 0
        for token, tag in zip(tokens, tags.argmax(-1).tolist(), strict=True):
            if tag:
                begun = begun or (token.start, _SEVERITIES[tag - 1])
                end = token.end
            elif begun is not None:
                start, severity = begun
                grade = float(getattr(self._spec.severities, severity))
                found.append(SegmentScore(Span(start, max(start, end)), severity, grade, None))
                begun = None
        return tuple(found)
