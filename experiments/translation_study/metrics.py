"""Reference metrics of translations, by sacrebleu, and properties of texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sacrebleu.metrics import BLEU, CHRF, TER

__all__ = ["GOLD", "METRICS", "corpus_scores", "repetition", "sentence_scores"]

#: The metric that labels preferences and judges policies: chrF with precision and recall alike.
#: sacrebleu's chrF has recall count double, so longer samples win more often.
GOLD = "chrF1"

#: Metric -> whether lower is better.
METRICS = {GOLD: False, "chrF": False, "BLEU": False, "TER": True}


def sentence_scores(
    completions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, list[float]]:
    """Return metrics of each translation; BLEU with smoothing by effective order."""
    made = _made(BLEU(effective_order=True))
    return {
        name: [
            made[name].sentence_score(text, list(known)).score
            for text, known in zip(completions, references, strict=True)
        ]
        for name in metrics
    }


def corpus_scores(
    completions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return each metric of the whole corpus; sentences may have any number of references."""
    most = max(map(len, references))
    columns = [[one[at] if at < len(one) else None for one in references] for at in range(most)]
    return {
        name: metric.corpus_score(list(completions), columns).score
        for name, metric in _made(BLEU()).items()
    }


def _made(bleu: BLEU) -> dict[str, CHRF | BLEU | TER]:
    return {GOLD: CHRF(beta=1), "chrF": CHRF(), "BLEU": bleu, "TER": TER()}


def repetition(text: str) -> float:
    """Return the share of pairs of adjacent words that occur earlier in the text."""
    words = text.casefold().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
