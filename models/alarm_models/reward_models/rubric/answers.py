"""A judge's answers on criteria: their JSON schema, the verdicts in them, and quoted spans."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

from alarm_models.errors import SampleError, quoted_answer
from alarm_models.preprocessing.untrusted_text import without_invisible
from alarm_models.reward_models.judge_answers import RatingError, answer_part
from alarm_models.reward_models.judge_endpoint.client import JudgeReply, TokenLogprob
from alarm_models.types import Span

__all__ = [
    "ID_CHARS",
    "WrittenVerdict",
    "answer_schema",
    "closed_object",
    "criterion_key",
    "quoted_spans",
    "read_object",
    "read_verdicts",
]

#: An answer's key for the mark of the question, which no completion knows.
_ID = "id"

#: Characters of the mark that an answer repeats.
ID_CHARS = 8

#: The start of an answer's JSON object, which may stand in a fence or after a remark.
_OBJECT = re.compile(r'\{\s*"id"')

#: JSON objects of an answer that are looked at.
_MAX_OBJECTS = 20

#: The verdict of a criterion in the text of a JSON answer. In a string its quotes are escaped.
_MET = re.compile(r'(?<!\\)"met"\s*:\s*(true|false)')

#: The longest answer that is read, in characters.
_MAX_CHARS = 200_000

#: Quotes of one criterion that are looked for, and the length of each.
_MAX_QUOTES = 20
_MAX_QUOTE_CHARS = 2000

#: Passages of one criterion's quotes that are looked for: a quote has one more than ellipses.
_MAX_PASSAGES = 200

_ELLIPSIS = re.compile(r"\.\.\.|…")

#: White space, typographic quotes and dashes are equal when a quote is looked for.
_ALIKE = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})


@dataclass(frozen=True, slots=True)
class WrittenVerdict:
    """To what extent a criterion is met, in [0, 1], and what the judge quoted."""

    met: float
    quotes: tuple[str, ...] = ()


def criterion_key(index: int) -> str:
    """Return the key of the criterion of a question at ``index``."""
    return f"c{index + 1}"


def answer_schema(mark: str, num_criteria: int, *, has_quotes: bool) -> dict[str, Any]:
    """Return the JSON schema of an answer: per criterion a reason, quotes, and then the verdict."""
    parts: dict[str, Any] = {"reason": {"type": "string"}}
    if has_quotes:
        parts["quotes"] = {"type": "array", "items": {"type": "string"}}
    parts["met"] = {"type": "boolean"}
    keys: dict[str, Any] = {_ID: {"type": "string", "enum": [mark[:ID_CHARS]]}}
    keys |= {criterion_key(index): closed_object(parts) for index in range(num_criteria)}
    return closed_object(keys)


def closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with just these keys."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def read_verdicts(
    reply: JudgeReply, mark: str, num_criteria: int, *, is_probability: bool
) -> list[WrittenVerdict | SampleError]:
    """Return the verdict on each criterion of a question, or why there is none.

    The answer must have one JSON object that repeats the start of the question's mark, which no
    completion knows: a judge that copies an answer from the completion gives none. A truncated or
    refused answer, another text, several such objects, and a key that is there twice have no
    verdict.
    """
    try:
        answer, text = read_object(reply, mark)
    except SampleError as error:
        return [error.with_traceback(None)] * num_criteria
    verdicts = [_verdict(answer.get(criterion_key(at)), at) for at in range(num_criteria)]
    if not is_probability:
        return verdicts
    return _with_probabilities(verdicts, list(answer), text, reply.tokens)


def _with_probabilities(
    verdicts: Sequence[WrittenVerdict | SampleError],
    keys: Sequence[str],
    text: str,
    tokens: Sequence[TokenLogprob],
) -> list[WrittenVerdict | SampleError]:
    """Return verdicts with the probabilities that their tokens have; ``keys`` are in order."""
    own = [criterion_key(at) for at in range(len(verdicts))]
    order = [own.index(key) for key in keys if key in own]
    found = list(_MET.finditer(text))
    if len(found) != len(own) or len(order) != len(own):
        return [_unread("does not have one verdict for each criterion")] * len(own)
    read: list[WrittenVerdict | SampleError] = list(verdicts)
    places = _places_in_tokens(found, text, tokens)
    for at, place in zip(order, places, strict=True):
        verdict = verdicts[at]
        if isinstance(verdict, WrittenVerdict):
            chance = None if place is None else _probability(tokens, place, verdict.met > 0)
            read[at] = (
                _unread('has no log probabilities of its verdict: set measure = "verdict"')
                if chance is None
                else WrittenVerdict(chance, verdict.quotes)
            )
    return read


def _places_in_tokens(
    found: Sequence[re.Match[str]], text: str, tokens: Sequence[TokenLogprob]
) -> Sequence[int | None]:
    """Return where the joined tokens have the verdicts of an answer's text; None if they do not.

    The tokens may begin with reasoning that the endpoint has cut off. They differ from the text
    where a character is split over two of them, which neither shows; then the last verdicts count.
    """
    joined = "".join(token.token for token in tokens)
    offset = joined.rfind(text)
    if offset >= 0:
        return [offset + one.start(1) for one in found]
    last = list(_MET.finditer(joined))[-len(found) :]
    if [one.group(1) for one in last] != [one.group(1) for one in found]:
        return [None] * len(found)
    return [one.start(1) for one in last]


def read_object(reply: JudgeReply, mark: str) -> tuple[dict[str, Any], str]:
    """Return the JSON object of an answer and its text; raise `SampleError`."""
    if reply.is_refused:
        raise _unread("is a refusal", quoted_answer(reply.refusal or reply.text))
    if reply.is_cut:
        shown = quoted_answer(reply.text, from_end=True)
        raise _unread("was cut off; raise endpoint.parameters.max_tokens", shown)
    try:
        text = answer_part(reply.text[:_MAX_CHARS]).strip()
    except RatingError as error:
        raise _unread(str(error)) from error
    objects, problem = _json_objects(text)
    own = [one for one in objects if one[0].get(_ID) == mark[:ID_CHARS]]
    if len(own) == 1:
        return own[0]
    if own:
        raise _unread(f"has {len(own)} JSON objects with the question's id", quoted_answer(text))
    if objects:
        raise _unread("does not repeat the question's id", quoted_answer(text))
    raise _unread(f"has no valid JSON object ({problem})", quoted_answer(text))


def _json_objects(text: str) -> tuple[list[tuple[dict[str, Any], str]], str]:
    """Return the JSON objects of a text with their texts, and why one could not be read.

    The text is one, or has some that begin with the id.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles)
    starts = [0, *(match.start() for match in _OBJECT.finditer(text) if match.start())]
    objects: list[tuple[dict[str, Any], str]] = []
    problem, read_to = "none", 0
    for start in starts[:_MAX_OBJECTS]:
        if start < read_to:
            continue
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            problem = str(error)[:100]
            continue
        if isinstance(found, dict):
            objects.append((found, text[start:end]))
            read_to = end
    return objects, problem


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len({*keys}) < len(keys):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _verdict(given: Any, index: int) -> WrittenVerdict | SampleError:
    if not isinstance(given, dict) or not isinstance(given.get("met"), bool):
        return _unread(f"has no verdict true or false for {criterion_key(index)}")
    quotes = given.get("quotes")
    texts = quotes[:_MAX_QUOTES] if isinstance(quotes, list) else []
    return WrittenVerdict(
        float(given["met"]), tuple(one[:_MAX_QUOTE_CHARS] for one in texts if isinstance(one, str))
    )


def _probability(tokens: Sequence[TokenLogprob], at: int, is_met: bool) -> float | None:
    """Return the probability of `true` against `false` for the token at a character.

    None if the tokens do not make up the answer, or say nothing of it.
    """
    end = 0
    for token in tokens:
        end += len(token.token)
        if end > at:
            break
    else:
        return None
    chances = {True: 0.0, False: 0.0}
    for text, logprob in {token.token: token.logprob, **dict(token.alternatives)}.items():
        word = "".join(filter(str.isalpha, text)).lower()
        for value in chances:
            if word and str(value).lower().startswith(word):
                chances[value] += math.exp(min(logprob, 0.0))
    total = chances[True] + chances[False]
    if not chances[is_met] or not math.isfinite(total):
        return None
    return chances[True] / total


def quoted_spans(completion: str, quotes: Sequence[str]) -> tuple[Span, ...]:
    """Return where a completion has the quotes, in order and without overlaps.

    White space, typographic quotes, dashes, and case are equal; an ellipsis stands for any text. A
    quote that is not found has no span.
    """
    words = [match.span() for match in re.finditer(r"\S+", completion)]
    text = " ".join(_alike(completion[start:end]) for start, end in words)
    starts = list(accumulate((end - start + 1 for start, end in words), initial=0))

    def original(at: int) -> int:
        """Return where the completion has a character of the text."""
        word = bisect_right(starts, at) - 1
        return words[word][0] + at - starts[word]

    parts = [part for quote in quotes for part in _ELLIPSIS.split(without_invisible(quote))]
    passages = dict.fromkeys(" ".join(map(_alike, part.split())) for part in parts)
    spans: list[Span] = []
    for passage in islice(filter(None, passages), _MAX_PASSAGES):
        at = text.find(passage)
        if at >= 0:
            spans.append(Span(original(at), original(at + len(passage) - 1) + 1))
    return tuple(_merged(spans))


def _alike(text: str) -> str:
    """Return a text of the same length in which passages that count as equal are the same."""
    lowered = (one.lower() for one in text.translate(_ALIKE))
    return "".join(one if len(one) == 1 else one[0] for one in lowered)


def _merged(spans: Sequence[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start < merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(span.end, merged[-1].end))
        else:
            merged.append(span)
    return merged


def _unread(what: str, quote: str = "") -> SampleError:
    return SampleError("model_failed", f"the judge's answer {what}", quote)
