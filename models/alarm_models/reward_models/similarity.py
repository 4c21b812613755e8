"""Kind `similarity`: similarity of the completion to a reference."""

from __future__ import annotations

from collections.abc import Mapping

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from alarm_models.preprocessing.templates import FieldPattern, TextTemplate
from alarm_models.recipe.specs import SimilaritySpec
from alarm_models.reward_models.registry import check_kind
from alarm_models.types import Sample, Score

__all__ = ["Similarity"]


@check_kind(SimilaritySpec, library="sacrebleu")
class Similarity:
    """sacrebleu's sentence score against one reference, in [0, 100]."""

    def __init__(self, spec: SimilaritySpec, fields: Mapping[str, FieldPattern]) -> None:
        self._reference = TextTemplate(spec.reference, fields=fields)
        self._metric: BLEU | CHRF
        match spec.metric:
            case "chrf":
                self._metric = CHRF()
            case "chrf++":
                self._metric = CHRF(word_order=2)
            case "bleu":
                # Skip n-gram orders longer than the sentence.
                self._metric = BLEU(effective_order=True)

    def __call__(self, sample: Sample) -> Score:
        """Compare; raise `SampleError` if the sample has no reference."""
        reference = self._reference.render(sample).text
        found = self._metric.sentence_score(sample.completion_text, [reference])
        return Score(float(found.score), None, 0, False)
