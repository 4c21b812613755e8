"""Unigram and WordPiece vocabularies that are the same in every run.

The trainers of ``tokenizers`` for these two order equal counts by a random hash, so a test's token
ids, and with them a random model's scores, would differ from run to run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer, models


def train_unigram(
    fast: Tokenizer, texts: Sequence[str], special: Sequence[str], *, size: int, unk: str
) -> None:
    """Give ``fast`` a Unigram model of ``special`` and the most frequent pieces of ``texts``."""
    counts = Counter(word[start:end] for word, start, end in _substrings(fast, texts))
    pieces = _most_frequent(counts, size - len(special))
    total = sum(counts.values())
    scored = [(piece, math.log(counts[piece] / total)) for piece in pieces]
    fast.model = models.Unigram([*((one, 0.0) for one in special), *scored], special.index(unk))
    fast.add_special_tokens(list(special))


def train_wordpiece(
    fast: Tokenizer, texts: Sequence[str], special: Sequence[str], *, size: int, unk: str
) -> None:
    """Give ``fast`` a WordPiece model: as above, a piece within a word begins with ``##``."""
    counts = Counter(
        word[start:end] if start == 0 else f"##{word[start:end]}"
        for word, start, end in _substrings(fast, texts)
    )
    pieces = [*special, *_most_frequent(counts, size - len(special))]
    fast.model = models.WordPiece({piece: at for at, piece in enumerate(pieces)}, unk_token=unk)
    fast.add_special_tokens(list(special))


def _substrings(fast: Tokenizer, texts: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    for text in dict.fromkeys(texts):
        normal = fast.normalizer.normalize_str(text) if fast.normalizer else text
        for word, _ in fast.pre_tokenizer.pre_tokenize_str(normal):
            for start in range(len(word)):
                for end in range(start + 1, len(word) + 1):
                    yield word, start, end


def _most_frequent(counts: Counter[str], size: int) -> list[str]:
    """Return every single letter, then pieces by how many letters their repetitions have."""

    def order(piece: str) -> tuple[bool, int, str]:
        letters = len(piece.removeprefix("##"))
        return letters > 1, -letters * (counts[piece] - 1) if letters > 1 else 0, piece

    return sorted(counts, key=order)[:size]
