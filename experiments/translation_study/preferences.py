"""The holistic model: trained on preferences between the policy's own samples.

A reference metric (`metrics.GOLD`) decides which of two samples is better, and a quarter of the
labels are flipped, as people are inconsistent. The model reads no reference.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from translation_study.fitting import fit, padded
from translation_study.settings import Sizes

__all__ = ["Pair", "accuracy", "label", "scores", "train_holistic"]

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """Two translations of a prompt, the preferred one first, and whether the label was flipped."""

    prompt: str
    chosen: str
    rejected: str
    flipped: bool


def label(
    prompts: Sequence[str],
    samples: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float]],
    flipped: float,
) -> list[Pair]:
    """Return all pairs of each prompt's samples; pairs of equal score are left out."""
    choose = random.Random(0)
    pairs: list[Pair] = []
    for prompt, texts, values in zip(prompts, samples, scores, strict=True):
        for one, other in combinations(range(len(texts)), 2):
            if values[one] == values[other]:
                continue
            better, worse = (one, other) if values[one] > values[other] else (other, one)
            is_flipped = choose.random() < flipped
            if is_flipped:
                better, worse = worse, better
            pairs.append(Pair(prompt, texts[better], texts[worse], is_flipped))
    return pairs


def train_holistic(
    start: Path, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair], sizes: Sizes
) -> torch.nn.Module:
    """Train a classifier with one logit, by Bradley and Terry's loss.

    It starts from a token classifier of words (`train_errors`): its score is at first the mean
    margin by which tokens are rather right than wrong.
    """
    set_seed(0)
    words = AutoModelForTokenClassification.from_pretrained(start, dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(
        start, num_labels=1, dtype=torch.float32, ignore_mismatched_sizes=True
    ).train()
    with torch.no_grad():
        model.score.weight.copy_(words.score.weight[1:] - words.score.weight[:1])
    rows = [
        [_ids(tokenizer, pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        for pair in pairs
    ]

    def loss_of(batch: list[int]) -> torch.Tensor:
        ids, mask = padded(
            [rows[at][side] for side in (0, 1) for at in batch], tokenizer.pad_token_id
        )
        chosen, rejected = _pooled_logits(model, ids, mask).chunk(2)
        return -logsigmoid(chosen - rejected).mean()

    fit(
        model,
        [len(one) + len(other) for one, other in rows],
        loss_of,
        batch=_BATCH,
        steps=sizes.preference_epochs * -(-len(rows) // _BATCH),
        rate=sizes.preference_rate,
    )
    return model.eval()


def accuracy(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]
) -> float:
    """Return in which share of pairs the model prefers the chosen translation."""
    chosen = scores(model, tokenizer, [(pair.prompt, pair.chosen) for pair in pairs])
    rejected = scores(model, tokenizer, [(pair.prompt, pair.rejected) for pair in pairs])
    return sum(one > other for one, other in zip(chosen, rejected, strict=True)) / len(pairs)


@torch.no_grad()
def scores(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[str, str]]
) -> list[float]:
    """Return the score of each pair of a prompt and its translation."""
    found: list[float] = []
    for at in range(0, len(texts), 256):
        rows = [_ids(tokenizer, *text) for text in texts[at : at + 256]]
        ids, mask = padded(rows, tokenizer.pad_token_id)
        found += _pooled_logits(model, ids, mask).tolist()
    return found


def _pooled_logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the score of each row, of its mean hidden state, as `pooling = "mean"` reads it."""
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[:, :, None] / mask.sum(1)[:, None, None]  # [rows, tokens, 1]
    return model.score((states * weights).sum(1))[:, 0]


def _ids(tokenizer: PreTrainedTokenizerFast, prompt: str, text: str) -> list[int]:
    """Return the tokens that the recipe's template and suffix give."""
    return [*tokenizer(prompt + text)["input_ids"], tokenizer.eos_token_id]
