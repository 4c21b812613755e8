"""The model of error spans: trained to find the words at which references were corrupted.

The same training, on words of samples that the reference lacks, is the holistic model's start.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast, set_seed

from translation_study.fitting import fit, padded

__all__ = ["LABELS", "Marked", "corrupt", "detection", "margins", "mark", "train_errors"]

LABELS = ("error", "ok")

_BATCH = 64
_UNTOUCHED = 0.3
_SECOND = 0.4
_SMALL_WORDS = frozenset(
    {
        "a", "an", "the", "in", "on", "at", "to", "of", "for", "from", "with", "by", "he", "she",
        "it", "they", "we", "you", "I", "him", "her", "them", "us", "me", "his", "my", "your",
        "their", "our", "is", "are", "was", "were", "has", "have", "had", "do", "does", "did",
        "can", "could", "will", "would", "not",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Marked:
    """A translation as words, with the words that are wrong."""

    prompt: str
    words: tuple[str, ...]
    wrong: tuple[bool, ...]


def corrupt(pairs: Sequence[tuple[str, str]], vocabulary: Sequence[str], seed: int) -> list[Marked]:
    """Corrupt about 70 % of the references once or twice; the others stay as they are."""
    choose = random.Random(seed)
    return [
        _corrupted(prompt, reference.split(), vocabulary, choose) for prompt, reference in pairs
    ]


def mark(prompt: str, text: str, reference: str) -> Marked:
    """Mark the words of a translation that the reference does not have, or not as often."""
    left = Counter(map(_bare, reference.split()))
    words = tuple(text.split())
    wrong = []
    for word in map(_bare, words):
        wrong.append(left[word] == 0)
        left[word] -= left[word] > 0
    return Marked(prompt, words, tuple(wrong))


def _bare(word: str) -> str:
    return word.casefold().strip(".,;:!?")


def _corrupted(
    prompt: str, words: list[str], vocabulary: Sequence[str], choose: random.Random
) -> Marked:
    texts = [*words]
    wrong = [False] * len(texts)
    if choose.random() >= _UNTOUCHED:
        for _ in range(1 + (choose.random() < _SECOND)):
            kind = choose.choice((_replace, _replace, _small_word, _repeat, _swap, _drop, _inflect))
            texts, wrong = kind(texts, wrong, vocabulary, choose)
    return Marked(prompt, tuple(texts), tuple(wrong))


_Words = tuple[list[str], list[bool]]


def _replace(
    texts: list[str], wrong: list[bool], vocabulary: Sequence[str], choose: random.Random
) -> _Words:
    at = choose.randrange(len(texts))
    return _put(texts, wrong, at, [_like(texts[at], choose.choice(vocabulary))])


def _small_word(
    texts: list[str], wrong: list[bool], _: Sequence[str], choose: random.Random
) -> _Words:
    places = [at for at, word in enumerate(texts) if word in _SMALL_WORDS]
    if not places:
        return texts, wrong
    at = choose.choice(places)
    others = sorted(_SMALL_WORDS - {texts[at]})
    return _put(texts, wrong, at, [choose.choice(others)])


def _repeat(texts: list[str], wrong: list[bool], _: Sequence[str], choose: random.Random) -> _Words:
    at = choose.randrange(len(texts))
    return [*texts[: at + 1], *texts[at:]], [*wrong[: at + 1], True, *wrong[at + 1 :]]


def _swap(texts: list[str], wrong: list[bool], _: Sequence[str], choose: random.Random) -> _Words:
    if len(texts) < 3:
        return texts, wrong
    at = choose.randrange(len(texts) - 2)
    swapped = [*texts[:at], texts[at + 1], texts[at], *texts[at + 2 :]]
    return swapped, [*wrong[:at], True, True, *wrong[at + 2 :]]


def _drop(texts: list[str], wrong: list[bool], _: Sequence[str], choose: random.Random) -> _Words:
    """Drop a word; the one that follows is marked."""
    if len(texts) < 3:
        return texts, wrong
    at = choose.randrange(len(texts) - 1)
    return [*texts[:at], *texts[at + 1 :]], [*wrong[:at], True, *wrong[at + 2 :]]


def _inflect(
    texts: list[str], wrong: list[bool], _: Sequence[str], choose: random.Random
) -> _Words:
    places = [at for at, word in enumerate(texts) if word.isalpha() and len(word) > 3]
    if not places:
        return texts, wrong
    at = choose.choice(places)
    word = texts[at]
    ending = next((end for end in ("ing", "ed", "s") if word.endswith(end)), None)
    changed = word[: -len(ending)] if ending else word + choose.choice(("s", "ed", "ing"))
    return _put(texts, wrong, at, [changed])


def _put(texts: list[str], wrong: list[bool], at: int, new: list[str]) -> _Words:
    if new == [texts[at]]:
        return texts, wrong
    return [*texts[:at], *new, *texts[at + 1 :]], [*wrong[:at], True, *wrong[at + 1 :]]


def _like(word: str, other: str) -> str:
    """Return another word with the case and the punctuation of the first."""
    end = word[len(word.rstrip(".,;:!?")) :]
    bare = other.rstrip(".,;:!?")
    return (bare[:1].upper() + bare[1:] if word[:1].isupper() else bare) + end


def train_errors(
    start: Path,
    tokenizer: PreTrainedTokenizerFast,
    marked: Sequence[Marked],
    *,
    epochs: int,
    rate: float,
) -> torch.nn.Module:
    """Train a token classifier, started from the policy or another one, on labels of words."""
    set_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(
        start,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={name: at for at, name in enumerate(LABELS)},
        dtype=torch.float32,
    ).train()
    rows = [_encoded(tokenizer, one) for one in marked]

    def loss_of(batch: list[int]) -> torch.Tensor:
        logits = _word_logits(model, [rows[at] for at in batch], tokenizer.pad_token_id)
        right = torch.tensor([int(not bad) for at in batch for bad in marked[at].wrong])
        return cross_entropy(logits, right)

    fit(
        model,
        [len(ids) for ids, _ in rows],
        loss_of,
        batch=_BATCH,
        steps=epochs * -(-len(rows) // _BATCH),
        rate=rate,
    )
    return model.eval()


@torch.no_grad()
def detection(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, marked: Sequence[Marked]
) -> dict[str, float]:
    """Return precision and recall of the words that were corrupted."""
    found: list[bool] = []
    for at in range(0, len(marked), 128):
        found += [one <= 0 for one in margins(model, tokenizer, marked[at : at + 128])]
    wrong = [bad for one in marked for bad in one.wrong]
    both = sum(one and other for one, other in zip(found, wrong, strict=True))
    return {
        "precision": both / max(1, sum(found)),
        "recall": both / max(1, sum(wrong)),
        "share_wrong": sum(wrong) / len(wrong),
    }


@torch.no_grad()
def margins(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, marked: Sequence[Marked]
) -> list[float]:
    """Return by how much each word is rather right than wrong, as kind `segments` scores it."""
    rows = [_encoded(tokenizer, one) for one in marked]
    logits = _word_logits(model, rows, tokenizer.pad_token_id)
    return (logits[:, 1] - logits[:, 0]).tolist()


_Encoded = tuple[list[int], list[tuple[int, int]]]


def _encoded(tokenizer: PreTrainedTokenizerFast, one: Marked) -> _Encoded:
    """Return tokens as kind `segments` writes them, and the range of each word.

    A separator precedes each word of the translation and belongs to it.
    """
    ids = list(tokenizer(one.prompt.split(), is_split_into_words=True)["input_ids"])
    ranges = []
    for word in one.words:
        start = len(ids)
        ids += [tokenizer.sep_token_id, *tokenizer([word], is_split_into_words=True)["input_ids"]]
        ranges.append((start, len(ids)))
    return ids, ranges


def _word_logits(model: torch.nn.Module, rows: Sequence[_Encoded], pad: int) -> torch.Tensor:
    """Return the mean logits of each word, `[words, labels]`."""
    ids, mask = padded([row for row, _ in rows], pad)
    logits = model(input_ids=ids, attention_mask=mask).logits  # [rows, tokens, labels]
    return torch.stack(
        [
            logits[row, start:end].mean(0)
            for row, (_, ranges) in enumerate(rows)
            for start, end in ranges
        ]
    )
