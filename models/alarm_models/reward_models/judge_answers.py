"""Parses the rating or verdict in the text that a judge answered, and ignores other numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from alarm_models.errors import SampleError, printable_json, quoted_answer
from alarm_models.preprocessing.patterns import TimedPattern
from alarm_models.recipe.specs import ANY_NUMBER

__all__ = [
    "AnswerReader",
    "AnswerRules",
    "JudgeAnswer",
    "RatingError",
    "Scale",
    "answer_part",
    "opened_thoughts",
    "read_rating",
    "read_verdict",
]

#: Time limit for a recipe's pattern on one answer, in seconds.
_PATTERN_TIMEOUT_S = 1.0

#: Longer answers are parsed from their end.
_MAX_CHARACTERS = 50_000

_PLAIN = r"\d{1,6}(?:[.,]\d{1,6})?"
_RANGE = rf"{_PLAIN}[ \t]{{0,3}}(?:-|–|—|−|to|and|through|\.\.|,)[ \t]{{0,3}}{_PLAIN}"
_NUMBER = r"(?<![\w.])[-+−]?(?:\d{1,30}(?:[.,]\d{1,30})*|\.\d{1,30})(?:[eE][-+]?\d{1,3})?"

#: Descriptions of the scale: "(on a scale from 1 to 10)", "[1-10]", "between 0 and 5".
_SCALE = re.compile(
    rf"[(\[][^()\[\]\d]{{0,40}}{_RANGE}[^()\[\]\d]{{0,40}}[)\]]"
    rf"|\b(?:scale|range|from|between)\b[^\d.]{{0,20}}{_RANGE}"
    rf"|{_RANGE}[ -](?:point )?(?:scale|range)\b"
    rf"|\b\d{{1,4}}[ -]point scale\b"
    rf"|[(\[](?:max|min|out of|of)[^()\[\]\d]{{0,20}}{_PLAIN}[)\]]"
    r"|\b(?:max(?:imum)?|min(?:imum)?|highest|lowest|top) (?:possible )?"
    rf"(?:score|rating|mark|grade)s?(?: is| of| being|:){{0,2}} {_PLAIN}",
    re.IGNORECASE,
)

#: Words between a rating and its scale, in common languages.
_OUT_OF = (
    r"(?:[/⁄∕／]|\b(?:out of|of|von|sur|de|di|su|van|av|af|na|z|из|із|от|"
    r"over|sobre|op)\b)"
)

#: "7/10", "7 out of 10", "7 points of 10", "7 von 10 Punkten".
_RATIO = re.compile(
    rf"(?P<number>{_NUMBER})"
    r"(?:[ \t]{0,3}(?:points?|stars?|marks?|punkten?|punti|puntos|pontos|punten|sterne|estrellas))?"
    rf"[ \t]{{0,3}}{_OUT_OF}[ \t]{{0,3}}"
    r"(?:(?:a|an|of|the|possible|maximum|maximal|max|total|full|perfect)[ \t]{1,3}){0,5}"
    rf"(?P<scale>{_PLAIN})(?!\w)",
    re.IGNORECASE,
)

#: A scale before its rating: "Score/10: 7", "out of 10, I say 7", "1-10: 7".
_SCALE_BEFORE = re.compile(
    r"(?:[/⁄∕／]|\bout of\b)[ \t]{0,3}(?:a |the |possible |maximum |max |total ){0,3}"
    rf"{_PLAIN}(?![\d.,]*\w)"
    rf"|(?<![\d.,]){_RANGE}(?=[ \t]{{0,3}}:[ \t]{{0,3}}[\d.])",
    re.IGNORECASE,
)

#: "seven out of ten": not read, since such words may be part of a phrase ("nine times out of ten").
_SPELLED = re.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|half|no|full)"
    r"(?:[ -](?:and )?(?:a )?(?:half|points?|stars?|marks?|times))?"
    r" (?:out of|of|over) (?:a )?(?:possible )?(?:five|ten|twenty|hundred|\d{1,4})\b",
    re.IGNORECASE,
)

_NUMBERS = re.compile(rf"{_NUMBER}(?!\w)")


#: Between two numbers of an undecided answer: "7-8", "7 to 8", "7 or 8".
_HEDGE = r"(?:maybe|perhaps|possibly)"
_OR = rf"or(?:[ \t]{{1,3}}(?:{_HEDGE}|even))?"
_DOUBT = re.compile(
    rf"[ \t]{{0,3}}(?:[-–—−~]|\bto\b|,?[ \t]{{0,3}}\b(?:{_OR}|{_HEDGE})\b)[ \t]{{0,3}}",
    re.IGNORECASE,
)

#: What says that a number before it is not the judge's own: the answer asks for it (a prompt
#: injection that the judge reports), or it would have been given.
_ANSWER = r"(?:answer|response|completion|reply|text|essay|assistant|author|writer|it)"
_NOT_OWN = re.compile(
    rf"\b{_ANSWER}\s+(?:\w+\s+)?(?:claims?|claimed|demands?|demanded|insists?|insisted|requests?)\b"
    rf"|\b{_ANSWER}\s+says?\s*:"
    r"|(?<!\byou )\b(?:tell|tells|told|asks?|asked|instruct|instructs|instructed|orders?)\s+"
    r"(?:me|us|the\s+(?:judge|grader|evaluator|rater|model))\b"
    r"|\binstructions?\s+to\s+(?:give|rate|score|grade|assign|award|output|return)\b"
    r"|\b(?:would|could|might)\s+have\s+(?:given|rated|scored|awarded|assigned|earned|received)\b",
    re.IGNORECASE,
)
_OWN = re.compile(r"\b(?:I|my|mine)\b")

#: Number of characters around a number that are searched for words.
_REACH = 120

_OPENING = " \t\"'([{<>|•"
_LIST_ITEM = re.compile(r"[.)]\s+\S")
_REMARK = re.compile(r"\s*(?:$|[:(–—]|-\s)")

_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

#: Words that mark a number as the rating.
_LABELS = frozenset(
    {
        "score", "scores", "scored", "scoring", "rating", "ratings", "rate", "rated", "rates",
        "grade", "graded", "mark", "give", "giving", "gave", "assign", "assigning", "award",
        "awarding", "deserves", "deserve", "merits", "merit", "earns", "gets", "receives",
        "verdict", "overall", "final", "total", "evaluation", "judgement", "judgment",
    }
)  # fmt: skip

#: Words that mark a number as a bound, a part or a name.
_OTHERS = frozenset(
    {
        "least", "most", "less", "more", "than", "below", "above", "under", "over", "up", "not",
        "no", "never", "nearly", "almost", "minus", "lose", "loses", "lost", "deduct",
        "deducts", "deducted", "deducting", "subtract", "subtracted", "subtracting", "add",
        "adds", "adding", "another", "by", "step", "item", "criterion", "part", "section",
        "question", "version", "number", "line", "paragraph", "page", "chapter", "year", "if",
        "unless", "confidence", "n't", "don't", "wouldn't", "can't", "cannot",
    }
)  # fmt: skip

#: Before a ratio, in its clause: it is not the rating.
_NOT_RATIOS = _OTHERS & {"not", "no", "never", "n't", "don't", "wouldn't", "can't", "cannot"}
_NOT_RATIOS |= {"considered", "perfect", "ideal", "doesn't", "isn't", "didn't"}

#: Words that may follow a rating; after any other word the number is a count.
_FOLLOWERS = frozenset(
    {
        "point", "points", "pts", "star", "stars", "mark", "marks", "overall", "total", "in",
        "because", "since", "as", "due", "for", "but", "and", "given", "with", "on", "at",
        "here", "from", "is", "was", "would", "seems", "reflects", "based", "although",
        "though", "while", "which", "punkte", "punkten", "punti", "puntos", "pontos", "punten",
        "sterne", "sternen", "estrellas", "étoiles",
    }
)  # fmt: skip

#: Words that a line with only a rating may contain.
_ALONE = _LABELS | frozenset(
    {
        "my", "the", "your", "this", "is", "of", "a", "an", "it", "i", "would", "be", "so",
        "therefore", "thus", "point", "points", "star", "stars", "mark",
        "marks", "out",
    }
)  # fmt: skip

_FINAL = frozenset({"overall", "final", "total"})

_MARKUP = re.compile(
    r"[*`$]+|^[ \t]*#+|(?<!\w)_+|_+(?!\w)|\\(?:boxed|text|mathbf)\b|\\[()\[\]]", re.MULTILINE
)

_THOUGHTS_START = re.compile(
    r"<(?P<tag>think|thinking|thought|reasoning|reflection|scratchpad)>|\[THINK\]", re.IGNORECASE
)

#: Ends of thoughts that a chat template may begin; a sample's texts do not contain them, since
#: `untrusted_text` splits them.
_THOUGHTS_END = re.compile(r"</(?:think|thinking)>|\[/THINK\]", re.IGNORECASE)

#: What a judge quotes of the answer that it judges: `says "Score: 10"`.
_QUOTED = re.compile(
    r"\b(?:says?|said|claims?|claimed|states?|stated|writes?|wrote|reads?|asks?|with|by)\b[:,]?\s*"
    r"(?:\"[^\"\n]*\"|“[^”\n]*”)",
    re.IGNORECASE,
)


class RatingError(ValueError):
    """A judge's answer has no rating, or several; the message goes on from "the answer"."""


class _UnfinishedThoughts(RatingError):
    """An answer ends before its reasoning does."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The lowest and the highest rating; None if the recipe sets none."""

    lowest: float | None = None
    highest: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value is on the scale."""
        is_low = self.lowest is not None and value < self.lowest
        return not is_low and not (self.highest is not None and value > self.highest)


@dataclass(frozen=True, slots=True)
class _Rating:
    """``is_marked``: marked as a rating by words; ``is_alone``: alone on its line."""

    value: float
    is_marked: bool
    is_final: bool
    is_alone: bool


class AnswerRules(Protocol):
    """What a recipe says of a judge's answers."""

    @property
    def pattern(self) -> str:
        """The pattern of the rating; `ANY_NUMBER` selects the parser."""

    @property
    def values(self) -> Mapping[str, float]:
        """The score of each verdict; empty for ratings."""

    @property
    def lowest(self) -> float | None:
        """The lowest valid rating."""

    @property
    def highest(self) -> float | None:
        """The highest valid rating."""


#: The finish reasons of answers that the judge ended, in the words of several servers.
_ENDED = frozenset(
    {
        "", "stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed",
        "tool_calls", "function_call",
    }
)  # fmt: skip
#: Those of refusals, by the model or by a filter.
_REFUSED = frozenset(
    {"content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii"}
)


def is_ended(finish_reason: object) -> bool:
    """Return whether a judge ended its answer, rather than a limit, a filter or a fault."""
    return not isinstance(finish_reason, str) or finish_reason.lower() in _ENDED


def is_refusal(finish_reason: object) -> bool:
    """Return whether a judge, or a filter, refused to answer."""
    return isinstance(finish_reason, str) and finish_reason.lower() in _REFUSED


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """A text that a judge wrote; ``is_cut`` if it did not end it, as at the limit of tokens."""

    text: str
    is_cut: bool = False
    is_refused: bool = False


class AnswerReader:
    """Reads the score in a judge's answers.

    It is the rating in an answer, the value of its verdict, or the last match of the recipe's
    pattern; the mean of several answers. An answer without a rating, with several, with one out of
    bounds, or a truncated answer is an error: no score is ever made up. ``limit_key`` is the
    recipe's key of the limit of tokens.
    """

    def __init__(self, rules: AnswerRules, limit_key: str) -> None:
        self._values = rules.values
        self._scale = Scale(rules.lowest, rules.highest)
        self._limit_key = limit_key
        self._pattern: TimedPattern | None = None
        if rules.pattern != ANY_NUMBER:
            self._pattern = TimedPattern(rules.pattern, _PATTERN_TIMEOUT_S)

    def score(self, answers: Sequence[JudgeAnswer]) -> float:
        """Return the mean of the answers, more than half of which must be readable.

        Raises `SampleError` (``model_failed``).
        """
        votes = [self._vote(answer) for answer in answers]
        values = [vote for vote in votes if not isinstance(vote, SampleError)]
        problems = [vote for vote in votes if isinstance(vote, SampleError)]
        num_votes = len(answers)
        if num_votes > 1 and problems and 2 * len(values) <= num_votes:
            raise SampleError(
                "model_failed",
                f"{len(values)} of {num_votes} answers could be read, more than half must be; "
                f"of the first that could not: {problems[0].summary}",
                problems[0].quote,
            )
        if not values:
            raise problems[0]
        return sum(values) / len(values)

    def _vote(self, answer: JudgeAnswer) -> float | SampleError:
        text = answer.text
        if answer.is_refused:
            return _no_number("is a refusal", quoted_answer(text))
        if answer.is_cut:
            shown = quoted_answer(text, from_end=True)
            return _no_number(f"was cut off; raise {self._limit_key}", shown)
        try:
            value = self._number(text)
        except SampleError as error:
            return error.with_traceback(None)
        if not self._scale.holds(value):
            low, high = self._scale.lowest, self._scale.highest
            return _no_number(f"has {value:g}, which is not within [{low}, {high}]")
        return value

    def _number(self, text: str) -> float:
        if self._pattern is None:
            return self._parsed(text)
        last = None
        for match in self._pattern.finditer(text):
            last = match.group(match.lastindex or 0)
        if last is None:
            raise _no_number("has no number", quoted_answer(text))
        if self._values:
            if last.strip() not in self._values:
                known = printable_json(list(self._values))
                raise _no_number(f"has a match that is none of {known}", quoted_answer(last))
            return self._values[last.strip()]
        try:
            return float(last)
        except ValueError as error:
            raise _no_number("has a match that is not a number", quoted_answer(last)) from error

    def _parsed(self, text: str) -> float:
        try:
            if self._values:
                return self._values[read_verdict(text, tuple(self._values))]
            return read_rating(text, self._scale)
        except _UnfinishedThoughts as error:
            what = f"{error}; raise {self._limit_key}"
            raise _no_number(what, quoted_answer(text, from_end=True)) from error
        except RatingError as error:
            raise _no_number(str(error), quoted_answer(text, from_end=True)) from error


def _no_number(what: str, quote: str = "") -> SampleError:
    return SampleError("model_failed", f"the judge's answer {what}", quote)


def opened_thoughts(text: str) -> str:
    """Return the tag of reasoning that a text ends with, and that what follows continues."""
    *_, last = (None, *_THOUGHTS_START.finditer(text))
    return last.group() if last is not None and not text[last.end() :].strip() else ""


def answer_part(text: str) -> str:
    """Return the answer after the judge's reasoning; raise `RatingError` if that does not end.

    Reasoning is the text in `<think>` or a similar tag that begins the answer, or up to `</think>`
    if the template began it. Tags later on are those of the answer that is judged.
    """
    begun = _begun_thoughts(text)
    if begun is not None:
        tag = begun["tag"]
        end = re.compile(rf"</{tag}>" if tag else r"\[/THINK\]", re.IGNORECASE)
    else:
        end = _THOUGHTS_END
        opening = _THOUGHTS_START.search(text)
        first = end.search(text)
        if first is not None and opening is not None and opening.start() < first.start():
            return text
    behind = [match.end() for match in end.finditer(text)]
    rest = text[behind[-1] :] if behind else text
    if _begun_thoughts(rest) is not None:
        raise _UnfinishedThoughts("ends within its thoughts")
    return rest


def _begun_thoughts(text: str) -> re.Match[str] | None:
    """Return the tag that a text begins with, after white space."""
    return _THOUGHTS_START.match(text, len(text) - len(text.lstrip()))


def _own_words(text: str) -> str:
    """Return the end of an answer, without reasoning, quotes and markup."""
    part = answer_part(text)[-_MAX_CHARACTERS:]
    return _MARKUP.sub("", _QUOTED.sub(" ", part))


def read_rating(text: str, scale: Scale) -> float:
    """Return the rating in an answer; raise `RatingError` unless there is exactly one.

    A rating is alone on a line, after a word such as `Score`, before `/10` or `out of 10`, or the
    answer's only number. Mentions of the scale and other numbers are ignored.
    """
    lines = [line for line in _own_words(text).splitlines() if line.strip()]
    by_line = [
        list(_in_line(line, before, scale))
        for before, line in zip(["", *lines], lines, strict=False)
    ]
    ratings = [one for found in by_line for one in found]
    chosen = [one for one in ratings if one.is_marked] or ratings
    chosen = [one for one in chosen if one.is_final] or chosen
    values = {one.value for one in chosen}
    if len(values) > 1 and [one.is_alone for one in by_line[-1]] == [True]:
        # A rating alone on the last line is the conclusion of the answer.
        values = {by_line[-1][0].value}
    if not values:
        spelled = _SPELLED.search(" ".join(lines))
        if spelled is not None:
            raise RatingError(
                f"rates in words ({quoted_answer(spelled.group())}), which may mean another number "
                "than they say: have the prompt ask for digits"
            )
        raise RatingError("has no number that is a rating")
    if len(values) > 1:
        shown = ", ".join(f"{value:g}" for value in sorted(values)[:5])
        raise RatingError(f"has several numbers ({shown}), and does not say which is the rating")
    return values.pop()


def read_verdict(text: str, names: Sequence[str]) -> str:
    """Return the verdict in an answer, one of ``names``.

    A verdict is alone on a line, at the start of a sentence before a comma or a dot, marked as
    ``[[A]]``, ``\\boxed{A}`` or ``<answer>A</answer>``, or after a word such as `Verdict`. Case
    matters only of letters that are not alone on a line. Raises `RatingError` unless there is
    exactly one; a verdict alone on the last line takes precedence.
    """
    by_case = {name.casefold(): name for name in names}
    if len(by_case) < len(names):
        by_case = {name: name for name in names}
    name = "|".join(re.escape(one) for one in sorted(names, key=len, reverse=True))
    flags = re.IGNORECASE if len({one.casefold() for one in names}) == len(names) else 0

    def known(found: str) -> str:
        return by_case[found.casefold() if flags else found]

    lines = [line.strip() for line in _own_words(text).splitlines() if line.strip()]
    # A letter in a sentence must have its case: "a" is an article.
    in_text = re.NOFLAG if any(len(one) == 1 for one in names) else flags
    alone = re.compile(rf"[\s\"'(\[{{<]*({name})[\s\"')\]}}>.!]*", flags)
    begins = re.compile(rf"(?:^|[.!?;] +)[\"'(\[]*({name})[\"')\]]*\s?[,.:;!–—-](?!\w)", in_text)
    last = alone.fullmatch(lines[-1]) if lines else None
    if last is not None:
        return known(last[1])
    marked = re.compile(
        rf"\[\[\s*({name})\s*\]\]|<(?:answer|verdict|choice|label|score)>\W*({name})\W*</"
        rf"|(?<!neither )\b(?i:verdict|answer|choice|label|decision|winner|judge?ment|preference)\b"
        rf"(?:(?i: is)\b|:|=|\W){{1,4}}[\"'(\[{{]*({name})(?!\w)"
        rf"|\b(?i:prefer|pick|choose|chose|select)\b ({name})(?!\w)",
        in_text,
    )
    begun: list[str] = []
    for line in lines:
        whole = alone.fullmatch(line)
        begun += [whole[1]] if whole else [match[1] for match in begins.finditer(line)]
    matches = marked.finditer("\n".join(lines))
    for found in ([one for match in matches for one in match.groups() if one], begun):
        verdicts = sorted({known(one) for one in found})
        if len(verdicts) > 1:
            raise RatingError(f"has several verdicts ({', '.join(verdicts)})")
        if verdicts:
            return verdicts[0]
    raise RatingError(f"has no verdict that is one of {', '.join(names)}")


def _in_line(line: str, before: str, scale: Scale) -> Iterator[_Rating]:
    """Yield the ratings that a line may have; ``before`` is the line before it."""
    line = _SCALE.sub(" ", line)
    ratios = list(_RATIO.finditer(line))
    rest = _RATIO.sub(lambda match: " " * len(match.group()), line)
    rest = _SCALE_BEFORE.sub(lambda match: " " * len(match.group()), rest)
    numbers = list(_NUMBERS.finditer(rest))
    is_alone = len(ratios) + len(numbers) == 1 and _words(rest) <= _ALONE
    for match in ratios:
        if not _counts(line[match.end() : match.end() + _REACH], scale):
            value = _value(match["number"], scale)
            _require_scale(_value(match["scale"], Scale()), scale)
            head = line[max(0, match.start() - _REACH) : match.start()]
            lead = _lead(head, before)
            clause = re.split(r"[!?;,]|\.(?=\s)|\bbut\b", head)[-1]
            if _is_not_own(head, before):
                continue
            if value is not None and _NOT_RATIOS.isdisjoint(_words(clause)):
                yield _Rating(value, True, not _FINAL.isdisjoint(lead), is_alone)
    first = len(rest) - len(rest.lstrip(_OPENING))
    last: re.Match[str] | None = None
    for match in numbers:
        head = rest[max(0, match.start() - _REACH) : match.start()]
        lead = _lead(head, before)
        behind = rest[match.end() : match.end() + _REACH]
        value = _value(match.group(), scale)
        if last is not None and not _counts(behind, scale) and _is_doubt(rest, last, match):
            raise RatingError(f"does not settle: {quoted_answer(rest[last.start() : match.end()])}")
        last = match
        if value is None or _counts(behind, scale) or not _OTHERS.isdisjoint(lead[-4:]):
            continue
        if _is_not_own(head, before):
            continue
        begins = match.start() == first
        if begins and _LIST_ITEM.match(behind):
            continue
        is_marked = is_alone or (begins and bool(_REMARK.match(behind)))
        is_marked = is_marked or not _LABELS.isdisjoint(lead)
        yield _Rating(value, is_marked, not _FINAL.isdisjoint(lead), is_alone)


def _is_doubt(line: str, first: re.Match[str], second: re.Match[str]) -> bool:
    """Return whether two numbers are the ends of a range: "7-8", "7 to 8"."""
    if second.start() == first.end():
        return second.group()[0] in "-−"  # parsed as a sign
    return _DOUBT.fullmatch(line, first.end(), second.start()) is not None


def _is_not_own(head: str, before: str) -> bool:
    """Return whether the sentence before a number says that it is not the judge's rating."""
    *earlier, sentence = re.split(r"[!?;]|\.(?=\s)", head)
    if not earlier and before.rstrip().endswith(":"):
        sentence = f"{before[-_REACH:]} {sentence}"
    *_, said = (None, *_NOT_OWN.finditer(sentence))
    return said is not None and _OWN.search(sentence, said.end()) is None


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)}


def _lead(head: str, before: str) -> list[str]:
    """Return the words before a number in its sentence, or in a line that announces it."""
    sentence = re.split(r"[!?;]|\.(?=\s)", head)[-1]
    if not head.strip() and before.rstrip().endswith(":"):
        sentence = before
    return [word.lower() for word in _WORD.findall(sentence)]


def _counts(behind: str, scale: Scale) -> bool:
    """Return whether a number is a count: "3 flaws"."""
    if behind.startswith("%"):
        return scale.highest not in (None, 100)
    word = re.match(r"[ \t]{0,3}([^\W\d_]+)", behind)
    return word is not None and word[1].lower() not in _FOLLOWERS


def _value(text: str, scale: Scale) -> float | None:
    """Parse a number with a decimal comma or point; None if it is not a number."""
    text = text.replace("−", "-")
    readings = [text]
    if "," in text:
        readings = [text.replace(",", "")] if _THOUSANDS.fullmatch(text) else []
        readings += [text.replace(",", ".")] if _DECIMAL_COMMA.fullmatch(text) else []
    values = []
    for reading in readings:
        try:
            values.append(float(reading))
        except ValueError:
            return None  # a version, a date
    if len(values) > 1:
        values = values[:1] if scale.highest is not None and scale.holds(values[0]) else []
        if not values:
            raise RatingError(
                f"has {quoted_answer(text)}, whose comma may be one of decimals or of thousands"
            )
    return values[0] if values else None


def _require_scale(greatest: float | None, scale: Scale) -> None:
    if scale.highest is not None and greatest != scale.highest:
        raise RatingError(f"rates out of {greatest:g}, not of the recipe's {scale.highest:g}")
