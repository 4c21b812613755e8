"""Generates samples of random words, each of which is one token."""

from __future__ import annotations

from random import Random

from work import Sample, Twins

__all__ = ["FIRST_WORD", "VOCABULARY", "group", "ragged", "ragged_lengths"]

VOCABULARY = 30522
#: Ids below this are special tokens.
FIRST_WORD = 4

_WORDS_OF_A_SEGMENT = 20


def group(size: int, prompt: int, completion: int, seed: int) -> Twins:
    """Make a prompt with completions of half to one and a half times the mean length, in tokens.

    Completions have segments of twenty words.
    """
    choose = Random(str(seed))  # a number would lose its sign
    lengths = [choose.randint(completion // 2, completion * 3 // 2) for _ in range(size)]

    def twin() -> list[Sample]:
        shared = _words(choose, prompt)
        return [_with_segments(shared, _words(choose, length)) for length in lengths]

    return twin(), twin()


def ragged(count: int, median: int, seed: int) -> Twins:
    """Make samples without a common prefix; the prompt is the same single word for all.

    Rerankers use this word as their query.
    """
    choose = Random(str(seed))  # a number would lose its sign
    lengths = ragged_lengths(count, median, choose)

    def twin() -> list[Sample]:
        return [Sample("w7", " ".join(_words(choose, length))) for length in lengths]

    return twin(), twin()


def ragged_lengths(count: int, median: int, choose: Random) -> list[int]:
    """Draw lengths distributed like those of answers: log-normal around the median, 8 to 500."""
    lengths = (round(choose.lognormvariate(0, 0.5) * median) for _ in range(count))
    return [min(max(length, 8), 500) for length in lengths]


def _words(choose: Random, count: int) -> list[str]:
    return [f"w{choose.randrange(FIRST_WORD, VOCABULARY)}" for _ in range(count)]


def _with_segments(prompt: list[str], words: list[str]) -> Sample:
    segments, at = [], 0
    for first in range(0, len(words), _WORDS_OF_A_SEGMENT):
        length = len(" ".join(words[first : first + _WORDS_OF_A_SEGMENT]))
        segments.append((at, at + length))
        at += length + 1
    return Sample(" ".join(prompt), " ".join(words), tuple(segments))
