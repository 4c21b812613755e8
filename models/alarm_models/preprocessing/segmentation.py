"""Finds sentences, sub-sentences, steps and words, inserts separators, and marks copied words."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Literal, TypeVar

from sentencex import get_sentence_boundaries

from alarm_models.cancellation import check_cancelled
from alarm_models.errors import is_rust_panic
from alarm_models.preprocessing.templates import Rendered, TypedSpan
from alarm_models.types import Sample, Span

__all__ = [
    "SEGMENTERS",
    "SUPPORT_TYPES",
    "SegmentedIds",
    "SegmentedText",
    "copied_words",
    "find_segments",
    "sentences",
    "split_sentences",
    "split_words",
    "steps",
    "subsentences",
    "word_types",
    "words",
]

#: Minimum number of words before the break of a sub-sentence; more than this many must follow it
#: (FineGrainedRLHF, reward.py).
MIN_WORDS = 5

#: sentencex scans a paragraph again for each of its characters in `_SCANNED` while it holds the
#: GIL. This bounds the product of both numbers per call (some 20 ms).
_MAX_SCANS = 16_000_000

#: Paragraphs over that bound are read in windows of this many characters.
_WINDOW = 2000

_WORD = re.compile(r"\S+")

#: Ends of paragraphs for sentencex, which reads each paragraph separately.
_PARAGRAPH_END = re.compile(r"\n\r*\n")

#: Quotation marks, except apostrophes within words, and brackets.
_SCANNED = re.compile(r"""["«»‘’‚“”‛„‟‹›《》「」()\[\]{}<>（）＜＞]|['`](?!\w)|(?<!\w)['`]""")

#: Where lists and sentences may begin: what is between the scanned is compared with each of these.
_MARK = re.compile(r"[.!?…。！？।\n]")

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


def sentences(text: str) -> tuple[Span, ...]:
    """Find the sentences of an English text, without the whitespace around them.

    Takes time linear in the text, whatever it contains: a paragraph of tens of thousands of
    characters with very many quotation marks or brackets is read in windows.
    """
    found: list[Span] = []
    start = 0
    for end in (*(match.start() for match in _PARAGRAPH_END.finditer(text)), len(text)):
        check_cancelled()
        # The line ends between two paragraphs are trimmed from the second.
        paragraph = text[start:end]
        found += (Span(one.start + start, one.end + start) for one in _in_paragraph(paragraph))
        start = end
    return tuple(found)


def subsentences(text: str) -> tuple[Span, ...]:
    """Find the sub-sentences of an English text: its sentences, split at ``, ; ! ?``."""
    return split_sentences(text, sentences(text))


def steps(text: str) -> tuple[Span, ...]:
    """Find the steps of a solution, which are separated by blank lines."""
    breaks = [Span(*match.span()) for match in _BLANK_LINES.finditer(text)]
    starts = [0, *(one.end for one in breaks)]
    ends = [*(one.start for one in breaks), len(text)]
    found = (_trimmed(text, Span(*pair)) for pair in zip(starts, ends, strict=True))
    return tuple(span for span in found if span.start < span.end)


def words(text: str) -> tuple[Span, ...]:
    """Find the words of a text: what whitespace separates, punctuation included."""
    return tuple(Span(*match.span()) for match in _WORD.finditer(text))


def split_sentences(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Split each sentence at the words that end with ``, ; ! ?``.

    A part has at least five words, and more than five follow a break. A part in the middle that is
    shorter joins the one before it; a first part that is shorter goes on
    (FineGrainedRLHF, ``split_text_to_subsentences``).
    """
    return tuple(part for span in spans for part in _split_sentence(text, span))


def _split_sentence(text: str, sentence: Span) -> list[Span]:
    words = [Span(*m.span()) for m in _WORD.finditer(text, sentence.start, sentence.end)]
    if not words:
        return []
    starts = [0]
    for index in range(1, len(words)):
        ends_part = text[words[index - 1].end - 1] in ",;!?"
        if not ends_part or len(words) - index <= MIN_WORDS:
            continue
        if index - starts[-1] >= MIN_WORDS:
            starts.append(index)
        elif len(starts) > 1:
            starts[-1] = index
    ends = [start - 1 for start in starts[1:]] + [len(words) - 1]
    return [
        Span(words[first].start, words[last].end) for first, last in zip(starts, ends, strict=True)
    ]


def _in_paragraph(text: str) -> Iterator[Span]:
    if not text or text.isspace():
        return
    num_scanned = sum(1 for _ in _SCANNED.finditer(text))
    num_marks = sum(1 for _ in _MARK.finditer(text))
    num_scans = num_scanned * len(text) + (num_scanned + num_marks) ** 2
    bounds = _bounds(text) if num_scans <= _MAX_SCANS else _bounds_in_windows(text)
    for span in bounds:
        trimmed = _trimmed(text, span)
        if trimmed.start < trimmed.end:
            yield trimmed


def _bounds(text: str) -> list[Span]:
    if not text.isascii():
        text = _INITIAL.sub(lambda match: match[0][0].ljust(len(match[0])), text)
    try:
        boundaries = get_sentence_boundaries("en", text)
    except BaseException as error:
        if not is_rust_panic(error):
            raise
        return [Span(0, len(text))]
    return [Span(one["start_index"], one["end_index"]) for one in boundaries]


def _bounds_in_windows(text: str) -> list[Span]:
    """Find sentences a window at a time; each window begins with the last sentence before it."""
    starts = [0]
    at = 0
    while at < len(text):
        check_cancelled()
        end = at + _WINDOW
        found = [span.start + at for span in _bounds(text[at:end])][1:]
        starts += found if end >= len(text) else found[:-1]
        # The last sentence may continue past the window. It is read again unless it is half a
        # window long, so every character is read at most twice.
        goes_on = found and found[-1] - at >= _WINDOW // 2 and end < len(text)
        if found and end < len(text):
            starts.append(found[-1])
        at = found[-1] if goes_on else end
    return [Span(*pair) for pair in zip(starts, [*starts[1:], len(text)], strict=True)]


def _trimmed(text: str, span: Span) -> Span:
    part = text[span.start : span.end]
    start = span.start + len(part) - len(part.lstrip())
    return Span(start, max(start, span.start + len(part.rstrip())))


#: sentencex 1.0.32 panics where white space that is not ASCII is between an initial and its dot.
_INITIAL = re.compile(r"(?<!\w)[A-Z]\s*[^\S\x00-\x7f](?=\.(?!\.))")

#: The segmenters that a recipe and a sample's ``segments`` may name.
SEGMENTERS: Mapping[str, Callable[[str], tuple[Span, ...]]] = {
    "sentences": sentences,
    "subsentences": subsentences,
    "steps": steps,
    "words": words,
}


def find_segments(sample: Sample, segmenter: str) -> tuple[Span, ...]:
    """Return the segments of a completion: those that the caller sent, or those found.

    Segmenter ``turns`` finds the messages that the policy wrote and that have a text.
    """
    if segmenter == "turns":
        return tuple(span for span in sample.turns if span.start < span.end)
    given = sample.segments.get(segmenter)
    return SEGMENTERS[segmenter](sample.completion_text) if given is None else tuple(given)


#: Number of consecutive words that must also occur in the prompt (n-gram size).
_ROW = 3

_WORD_CHARACTERS = re.compile(r"\w+")

#: For longer texts nothing is cached.
_MAX_CACHED_CHARS = 50_000

_T = TypeVar("_T")


def _cached(number: int) -> Callable[[Callable[..., _T]], Callable[..., _T]]:
    """Cache the last results of a function of texts that are not long.

    Groups have one prompt, and several models read a sample.
    """

    def decorate(function: Callable[..., _T]) -> Callable[..., _T]:
        cached = lru_cache(maxsize=number)(function)

        def call(*texts: str) -> _T:
            is_short = sum(map(len, texts)) <= _MAX_CACHED_CHARS
            return cached(*texts) if is_short else function(*texts)

        return call

    return decorate


def copied_words(prompt: str, completion: str) -> tuple[Span, ...]:
    """Find the words that also occur in the prompt, within the same three consecutive words.

    Case and punctuation are ignored. A grounded answer copies most of its words from the prompt;
    invented parts are not copied.
    """
    triples = _triples(prompt)
    words = [Span(*match.span()) for match in _WORD_CHARACTERS.finditer(completion)]
    texts = [completion[word.start : word.end].casefold() for word in words]
    copied: set[int] = set()
    for at in range(len(words) - _ROW + 1):
        if tuple(texts[at : at + _ROW]) in triples:
            copied.update(range(at, at + _ROW))
    return tuple(words[index] for index in sorted(copied))


@_cached(8)
def _triples(prompt: str) -> frozenset[tuple[str, ...]]:
    words = [word.casefold() for word in _WORD_CHARACTERS.findall(prompt)]
    return frozenset(tuple(words[at : at + _ROW]) for at in range(len(words) - _ROW + 1))


#: The token type of copied words, and that of repeated words with ``marking="support"``.
_COPIED, _REPEATED = 1, 1

#: Number of token types with ``marking="support"``: each ``form``, ``is_name``, ``level`` and
#: ``joined`` of `word_types`, and 0.
SUPPORT_TYPES = 3 * 2 * 6 * 3 + 1

#: A word that occurs in more sentences does not tell which of them supports another, and agrees
#: with all; this bounds the cost of a word.
_MAX_PLACES = 64

#: Most words in a row that are altered; longer rows are new text, or copied from elsewhere.
_MAX_ALTERED, _MAX_COPIED_ALTERED = 4, 3

#: A word agrees with the prompt on one more level from each of these shares on.
_LEVELS = (0.35, 0.6, 0.8, 0.999)

#: Smaller shares are rounding errors of differences.
_LEAST_SHARE = 1e-9

#: How much a sentence's neighbors count, beside the sentence itself.
_NEIGHBOR = 0.3

#: Sentences of at most this many words, such as a bare name, say too little about where they
#: belong: the words of the question count as theirs.
_SHORT = 8

#: Of the question, this many words count, in this many sentences that share most with it.
_MAX_QUESTION_WORDS, _MAX_QUESTION_PLACES = 64, 16

#: Number of consecutive words that must occur earlier in the completion to be a repetition.
_REPEATED_ROW = 4

#: Words that negate; of contractions such as "didn't", what precedes the apostrophe.
_NEGATIONS = frozenset(
    {
        "not", "never", "no", "none", "nobody", "nothing", "neither", "nor", "without", "cannot",
        "isn", "aren", "wasn", "weren", "don", "doesn", "didn", "hasn", "haven", "hadn", "couldn",
        "wouldn", "shouldn",
    }
)  # fmt: skip


#: A word, or two in a row.
_Part = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a sentence, where it starts, and whether it looks like a name or number."""

    start: int
    end: int
    text: str
    is_name: bool


def word_types(
    prompt: str, completion: str, marking: bool | Literal["support"], question: str = ""
) -> tuple[TypedSpan, ...]:
    """Return the words of a completion that have a token type other than 0, in order.

    ``question`` is what the prompt asks; one that is the whole prompt has no effect.

    Words that `copied_words` finds have type 1. With ``marking="support"``, type 1 is for words
    that the completion repeats, four in a row, and the type of any other is
    ``1 + joined + 3 * level + 18 * is_name + 36 * form``, or 0 where that is 1:

    - ``form``: 1 for copied words; 2 for a few words that replace words of the sentence of the
      prompt that shares most with theirs, stand between them, or negate it; 0 otherwise.
    - ``is_name``: 1 for names and numbers. The words of a name are taken together.
    - ``level``: 0 for words that the prompt does not have, otherwise 1 to 5, by how much the
      sentences that have the word share with the rest of its sentence, compared with the sentence
      that shares most. So a right name and a name from another sentence differ. The words of
      the question count as those of a sentence of up to eight words, so that this holds for a bare
      name, too.
    - ``joined``: how many of the two words beside it, 0 to 2, are beside it in the prompt too.
    """
    if marking != "support":
        return tuple(TypedSpan(*span, _COPIED) for span in copied_words(prompt, completion))
    question = question.strip()
    return _support_types(prompt, completion, "" if prompt.strip() in question else question)


@_cached(64)
def _support_types(prompt: str, completion: str, question: str) -> tuple[TypedSpan, ...]:
    index = _index_of(prompt, question)
    copied_at = {span.start for span in copied_words(prompt, completion)}
    repeated_at = _repeated_words(completion)
    found: list[TypedSpan] = []
    for sentence in sentences(completion):
        check_cancelled()
        words = _words_of(completion, sentence)
        shares = index.shares(words)
        altered = _altered_words(words, index.supporting(shares), copied_at)
        if len(words) <= _SHORT:
            shares = index.with_question(words, shares)
        for at, (word, (level, joined)) in enumerate(
            zip(words, index.agreement(words, shares), strict=True)
        ):
            form = 2 if at in altered else int(word.start in copied_at)
            kind = 1 + joined + 3 * level + 18 * word.is_name + 36 * form
            if word.start in repeated_at:
                kind = _REPEATED
            elif kind == 1:
                continue
            found.append(TypedSpan(word.start, word.end, kind))
    return tuple(found)


def _words_of(text: str, sentence: Span) -> list[_Word]:
    """Return a sentence's words; names have a capital, and not just because they are first."""
    matches = list(_WORD_CHARACTERS.finditer(text, *sentence))
    words = []
    for at, match in enumerate(matches):
        word = match.group()
        is_capital = word[0].isupper() and (
            at > 0 or (len(matches) > 1 and matches[1].group()[0].isupper())
        )
        is_name = is_capital or word[0].isdigit()
        words.append(_Word(match.start(), match.end(), word.casefold(), is_name))
    return words


def _repeated_words(text: str) -> set[int]:
    """Return where words start that occur earlier in the text, within the same four words."""
    words = [(match.start(), match.group().casefold()) for match in _WORD_CHARACTERS.finditer(text)]
    seen: set[tuple[str, ...]] = set()
    found: set[int] = set()
    for at in range(len(words) - _REPEATED_ROW + 1):
        row = words[at : at + _REPEATED_ROW]
        texts = tuple(word for _, word in row)
        if texts in seen:
            found.update(start for start, _ in row)
        seen.add(texts)
    return found


def _altered_words(
    words: Sequence[_Word], support: Sequence[str], copied_at: AbstractSet[int]
) -> set[int]:
    """Return which words replace, or stand between, words of the supporting sentence, or negate it.

    They are short rows between pairs of consecutive words of that sentence, or between one and the
    beginning or end of their own sentence. Rows copied from another sentence may be shorter only.
    """
    pairs = set(pairwise(support))
    is_kept = [False] * len(words)
    for at, (first, second) in enumerate(pairwise(words)):
        if (first.text, second.text) in pairs:
            is_kept[at] = is_kept[at + 1] = True
    found: set[int] = set()
    for kept, group in groupby(range(len(words)), key=is_kept.__getitem__):
        row = list(group)
        is_copied = any(words[at].start in copied_at for at in row)
        longest = _MAX_COPIED_ALTERED if is_copied else _MAX_ALTERED
        if not kept and len(row) <= min(longest, len(words) - 1):
            found.update(row)
    if support and _NEGATIONS.isdisjoint(support):
        found.update(
            at
            for at, word in enumerate(words)
            if word.text in _NEGATIONS and word.start not in copied_at
        )
    return found


class _SentenceIndex:
    """The words of a prompt's sentences."""

    def __init__(self, prompt: str, question: str) -> None:
        spans = sentences(prompt)
        self._sentences = [
            [word.casefold() for word in _WORD_CHARACTERS.findall(prompt, *span)] for span in spans
        ]
        self._places: dict[str, list[int]] = defaultdict(list)
        self._places_of_pairs: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, words in enumerate(self._sentences):
            for word in dict.fromkeys(words):
                self._places[word].append(place)
            for pair in dict.fromkeys(pairwise(words)):
                self._places_of_pairs[pair].append(place)
        self._question_places = _places_of(question, prompt, spans)
        self._question_shares = self._shares_of_question(question)

    def shares(self, words: Sequence[_Word]) -> dict[int, float]:
        """Return how much each sentence shares with ``words``, if anything.

        A word counts the logarithm of its inverse document frequency among the prompt's sentences,
        and nothing if it occurs in more than 64. The words of a name count as one, and two shared
        words in a row, unless of a name, count one more. So the other words decide where a name
        belongs.
        """
        shared: dict[int, float] = defaultdict(float)
        for _, share, places in self._parts(words):
            for place in places:
                shared[place] += share
        return shared

    def _parts(self, words: Sequence[_Word]) -> Iterator[tuple[_Part, float, Sequence[int]]]:
        """Return each word and pair of words, how much it counts, and where the prompt has it."""
        for text, weight in _weights(words).items():
            yield text, weight * self._rarity(text), self._telling(text)
        for pair in _pairs(words):
            yield pair, 1.0, self._telling_pair(pair)

    def with_question(
        self, words: Sequence[_Word], shares: Mapping[int, float]
    ) -> dict[int, float]:
        """Return the shares of a sentence together with the question.

        What both have counts once, and the question itself does not support a word.
        """
        own = {*(word.text for word in words), *_pairs(words)}
        found = {at: share for at, share in shares.items() if at not in self._question_places}
        for place, parts in self._question_shares.items():
            more = sum(share for part, share in parts.items() if part not in own)
            found[place] = found.get(place, 0.0) + more
        return found

    def _shares_of_question(self, question: str) -> Mapping[int, Mapping[_Part, float]]:
        """Return what the sentences that share most with the question share with it, by part.

        The question's own sentences are left out.
        """
        words = _words_of(question, Span(0, len(question)))[:_MAX_QUESTION_WORDS]
        shares = self.shares(words)
        others = sorted(shares.keys() - self._question_places, key=lambda at: (-shares[at], at))
        found: dict[int, dict[_Part, float]] = {at: {} for at in others[:_MAX_QUESTION_PLACES]}
        for part, share, places in self._parts(words):
            for place in places:
                if place in found:
                    found[place][part] = share
        return found

    def supporting(self, shares: Mapping[int, float]) -> Sequence[str]:
        """Return the words of the sentence that shares most; none if none does."""
        if not shares:
            return ()
        return self._sentences[max(shares, key=lambda place: (shares[place], -place))]

    def agreement(
        self, words: Sequence[_Word], shares: Mapping[int, float]
    ) -> Iterator[tuple[int, int]]:
        """Return level and number of joined neighbors of each word, as in `word_types`.

        A sentence's share includes some of its neighbors', for what it says may be spread over
        them; the share of the word itself, and of the pairs that it is in, is left out.
        """
        near: dict[int, float] = defaultdict(float, shares)
        for place, share in shares.items():
            for beside in (place - 1, place + 1):
                if 0 <= beside < len(self._sentences):
                    near[beside] += _NEIGHBOR * share
        descending = sorted(near, key=near.__getitem__, reverse=True)
        at = 0
        for row in _names_and_words(words):
            first, last = at, at + len(row) - 1
            at = last + 1
            pairs = [
                (words[one].text, words[one + 1].text)
                for one in (first - 1, last)
                if one >= 0 and one + 1 < len(words)
            ]
            joined = sum(pair in self._places_of_pairs for pair in pairs)
            own = self._own_share(row, pairs)
            level = self._level(row, own, near, descending)
            for word in row:
                yield (level if word.text in self._places else 0), joined

    def _own_share(
        self, row: Sequence[_Word], pairs: Sequence[tuple[str, str]]
    ) -> Mapping[int, float]:
        """Return the part of the shares that comes from a row of words and pairs beside it."""
        own: dict[int, float] = defaultdict(float)
        for text in dict.fromkeys(word.text for word in row):
            share = self._rarity(text) / len(row)
            for place in self._telling(text):
                own[place] += share
        for pair in pairs:
            for place in self._telling_pair(pair):
                own[place] += 1.0
        return own

    def _level(
        self,
        row: Sequence[_Word],
        own: Mapping[int, float],
        near: Mapping[int, float],
        descending: Sequence[int],
    ) -> int:
        """Return the level of a row of words by the sentences that have its rarest word."""
        known = [self._places[word.text] for word in row if word.text in self._places]
        if not known:
            return 0
        most = 0.0
        for place in descending:
            if near[place] <= most:
                break
            most = max(most, near[place] - own.get(place, 0.0))
        rarest = min(known, key=len)
        if len(rarest) > _MAX_PLACES:
            return 1 + len(_LEVELS)
        if most < _LEAST_SHARE:
            return 1
        best = max(near.get(place, 0.0) - own.get(place, 0.0) for place in rarest)
        return 1 + sum(best >= level * most for level in _LEVELS)

    def _rarity(self, word: str) -> float:
        """Return the logarithm of a word's inverse document frequency; 0 for unknown words."""
        places = self._places.get(word, ())
        return math.log(1 + len(self._sentences) / len(places)) if places else 0.0

    def _telling(self, word: str) -> Sequence[int]:
        places = self._places.get(word, ())
        return places if len(places) <= _MAX_PLACES else ()

    def _telling_pair(self, pair: tuple[str, str]) -> Sequence[int]:
        places = self._places_of_pairs.get(pair, ())
        return places if len(places) <= _MAX_PLACES else ()


_index_of = _cached(8)(_SentenceIndex)


def _names_and_words(words: Sequence[_Word]) -> Iterator[Sequence[_Word]]:
    """Return the words of each name together, and any other word alone, in order."""
    for is_name, group in groupby(words, key=lambda word: word.is_name):
        if is_name:
            yield list(group)
        else:
            yield from ([word] for word in group)


def _places_of(question: str, prompt: str, spans: Sequence[Span]) -> AbstractSet[int]:
    """Return which sentences of a prompt are the question's: half of their words or more."""
    starts: list[int] = []
    at = prompt.find(question) if question else -1
    while at >= 0:
        starts.append(at)
        at = prompt.find(question, at + len(question))

    def is_inside(word: re.Match[str]) -> bool:
        last = bisect_right(starts, word.start()) - 1
        return last >= 0 and word.end() <= starts[last] + len(question)

    found = set()
    for place, span in enumerate(spans):
        inside = [is_inside(word) for word in _WORD_CHARACTERS.finditer(prompt, *span)]
        if any(inside) and 2 * sum(inside) >= len(inside):
            found.add(place)
    return found


def _pairs(words: Sequence[_Word]) -> Sequence[tuple[str, str]]:
    """Return each pair of consecutive words that are not of one name, once."""
    pairs = ((a.text, b.text) for a, b in pairwise(words) if not (a.is_name and b.is_name))
    return list(dict.fromkeys(pairs))


def _weights(words: Sequence[_Word]) -> dict[str, float]:
    """Return the share of each word in its name; 1 for words that are in none."""
    weights: dict[str, float] = {}
    for row in _names_and_words(words):
        for word in row:
            weights[word.text] = max(weights.get(word.text, 0), 1 / len(row))
    return weights


@dataclass(frozen=True, slots=True)
class SegmentedIds:
    """Token ids with a separator before each segment.

    ``separators`` are the positions of the separators, ``prompt`` is the range of tokens from the
    prompt, and ``token_type_ids`` has the types of `word_types`.
    """

    ids: list[int]
    token_type_ids: list[int]
    separators: list[int]
    prompt: Span


@dataclass(frozen=True, slots=True)
class SegmentedText:
    """A sample's words, in order.

    ``firsts`` has the index of each segment's first word, ``prompt`` is the range of words from the
    prompt, and ``types`` has the token types of words that have one other than 0.
    """

    segments: tuple[Span, ...]
    words: list[str]
    firsts: list[int]
    prompt: Span
    types: Mapping[int, int]

    def insert_separators(
        self, ids: Sequence[int], owners: Sequence[int], separator: int
    ) -> SegmentedIds:
        """Put a separator before each segment; ``owners`` has the word of each id."""
        joined = SegmentedIds([], [], [], Span(0, 0))
        inside: list[int] = []
        # A final owner past all words adds the separators of segments without words.
        for token, owner in zip((*ids, None), (*owners, len(self.words)), strict=True):
            while (
                len(joined.separators) < len(self.firsts)
                and owner >= self.firsts[len(joined.separators)]
            ):
                joined.separators.append(len(joined.ids))
                joined.ids.append(separator)
                joined.token_type_ids.append(0)
            if token is None:
                break
            if self.prompt.start <= owner < self.prompt.end:
                inside.append(len(joined.ids))
            joined.ids.append(token)
            joined.token_type_ids.append(self.types.get(owner, 0))
        prompt = Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)
        return SegmentedIds(joined.ids, joined.token_type_ids, joined.separators, prompt)


def split_words(
    prefix: Rendered,
    sample: Sample,
    segments: tuple[Span, ...],
    marking: bool | Literal["support"],
    question: str = "",
) -> SegmentedText:
    """Split the text before the segments, and each segment, on whitespace.

    ``marking`` and ``question`` are those of `word_types`.
    """
    spans = [Span(*match.span()) for match in _WORD.finditer(prefix.text)]
    words = [prefix.text[span.start : span.end] for span in spans]
    inside = [
        index
        for index, span in enumerate(spans)
        if prefix.prompt.start <= span.start and span.end <= prefix.prompt.end
    ]
    text = sample.completion_text
    marked = word_types(sample.prompt_text, text, marking, question) if marking else ()
    type_at = {at: kind for start, end, kind in marked for at in range(start, end)}
    firsts: list[int] = []
    types: dict[int, int] = {}
    for segment in segments:
        firsts.append(len(words))
        for match in _WORD.finditer(text, segment.start, segment.end):
            kind = next((type_at[at] for at in range(*match.span()) if at in type_at), 0)
            if kind:
                types[len(words)] = kind
            words.append(match.group())
    prompt = Span(inside[0], inside[-1] + 1) if inside else Span(0, 0)
    return SegmentedText(segments, words, firsts, prompt, types)
