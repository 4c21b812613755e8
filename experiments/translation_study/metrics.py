"""Reference metrics of translations, by sacrebleu, and properties of texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from sacrebleu.metrics import BLEU, CHRF, TER

__all__ = ["METRICS", "corpus_scores", "repetition", "sentence_scores"]

#: Metric -> whether lower is better.
METRICS = {"chrF": False, "BLEU": False, "TER": True}


def sentence_scores(
    completions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, list[float]]:
    """Return metrics of each translation; BLEU with smoothing by effective order."""
    made = {"chrF": CHRF(), "BLEU": BLEU(effective_order=True), "TER": TER()}
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
    made = {"chrF": CHRF(), "BLEU": BLEU(), "TER": TER()}
    return {
        name: metric.corpus_score(list(completions), columns).score for name, metric in made.items()
    }


def repetition(text: str) -> float:
    """Return the share of pairs of adjacent words that occur earlier in the text."""
    words = text.casefold().split()
    pairs = list(pairwise(words))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
