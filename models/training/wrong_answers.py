"""Wrong answers made from right ones, by kind of fault, and short answers made from long ones.

Everything is made from the questions' own passages and answers. The kinds in `HELD_OUT_KINDS` are
never trained on; they measure whether the models know other faults than those they were shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from difflib import SequenceMatcher
from functools import cached_property
from random import Random

from alarm_models.preprocessing.segmentation import sentences
from data import Question

__all__ = [
    "HELD_OUT_KINDS",
    "KINDS",
    "SUBTLE",
    "WITHOUT_ANSWER",
    "Passages",
    "changed_words",
    "short_answers",
    "supported_prompt",
    "texts_of_sentences",
    "true_denial",
    "words_of",
    "wrong_answers",
]

#: Longer texts are left out: the models could not read all of one.
_MAX_CHARACTERS = 1500

#: A fault: returns a text with it, or None where a text does not allow it.
Fault = Callable[[str, Random], str | None]

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_MONTH = re.compile(rf"\b({'|'.join(_MONTHS)})\b")
_DATE = re.compile(
    rf"\b(?:{_MONTH.pattern} \d{{1,2}}, \d{{4}}|\d{{1,2}} {_MONTH.pattern} \d{{4}}"
    rf"|{_MONTH.pattern} \d{{4}}|\d{{4}})\b"
)
_NUMBER = re.compile(r"\d[\d,.]*\d|\d")
_NAME = re.compile(r"\b[A-Z][\w'’.-]*(?:\s+(?:of |the |de |van )?[A-Z][\w'’.-]*)*")
_VERB = re.compile(r"\b(?:is|was|are|were|has|have|had|can|could|will|would|did|does|do)\b(?! not)")

#: Contracted negations that do not just add "n't".
_CONTRACTIONS = {"can": "can't", "will": "won't"}

#: Words that begin a sentence in capitals without being names.
_NOT_NAMES = frozenset(
    {
        "The", "A", "An", "In", "On", "At", "It", "He", "She", "They", "This", "That", "These",
        "Those", "There", "When", "While", "After", "Before", "As", "For", "From", "If", "And",
        "But", "Its", "His", "Her", "Their", "What", "Who", "Where", "How", "Why", "Which", "Yes",
        "No",
    }
)  # fmt: skip

_OPPOSITES = (
    ("first", "last"), ("largest", "smallest"), ("more", "less"), ("before", "after"),
    ("north", "south"), ("east", "west"), ("won", "lost"), ("born", "died"),
    ("increase", "decrease"), ("highest", "lowest"), ("older", "younger"), ("always", "never"),
    ("most", "least"), ("father", "mother"), ("son", "daughter"), ("began", "ended"),
    ("starts", "ends"), ("opened", "closed"), ("male", "female"),
)  # fmt: skip
_OPPOSITE_OF = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
_OPPOSITE = re.compile(rf"\b({'|'.join(_OPPOSITE_OF)})\b")

_REFUSALS = (
    "I don't know.", "I do not know the answer.", "I'm sorry, but I can't help with that.",
    "There is not enough information to answer the question.", "No answer.",
    "I cannot answer this question.", "Sorry, I am not sure.",
    "As an AI language model, I cannot answer that.", "The passages do not say.", "N/A",
)  # fmt: skip
_OTHER_REFUSALS = (
    "I am unable to provide an answer to this.", "Unfortunately, I have no idea.", "Unknown.",
    "I would rather not say.", "It is not clear from the context.",
    "I'm not able to assist with this request.",
)  # fmt: skip

_FILLERS = (
    "Answer: Answer: ", "- - - ", "### ", "yes yes yes ", "!!! ", "a a a a ", "0 0 0 ", "... ",
    "Good question! Great question! ", "<br><br>", "* * * ",
)  # fmt: skip
_OTHER_FILLERS = ("1. 2. 3. ", "1. 2. 3. 4. 5. ", "ok ok ok ok ")


def texts_of_sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [text[span.start : span.end] for span in sentences(text)]


class Passages:
    """The passages of a question: their sentences, names and numbers."""

    def __init__(self, question: Question) -> None:
        self.question = question.text
        self._text = question.prompt.split("context:", 1)[-1]

    @cached_property
    def sentences(self) -> list[str]:
        """The sentences of all passages."""
        return texts_of_sentences(self._text)

    @cached_property
    def names(self) -> list[str]:
        """Each name once, in order."""
        return [name for name in self.names_of(self._text) if len(name) < 40]

    def names_of(self, text: str) -> list[str]:
        """Return each name of an answer once, in order; words in lower case here are common."""
        return list(dict.fromkeys(names(text, self._common)))

    @cached_property
    def _common(self) -> AbstractSet[str]:
        return {word for word in re.findall(r"\w+", self._text) if word.islower()}

    @cached_property
    def numbers(self) -> list[str]:
        """Each number once, in order."""
        return list(dict.fromkeys(_NUMBER.findall(self._text)))

    def __contains__(self, text: str) -> bool:
        return text in self._text


def names(text: str, common: AbstractSet[str]) -> list[str]:
    """Return what looks like a name: words in capitals within a sentence.

    A single word that begins its sentence is none if it is ``common``.
    """
    return [
        name
        for sentence in texts_of_sentences(text)
        for match in _NAME.finditer(sentence)
        if (name := _name_of(match, common))
    ]


def _name_of(match: re.Match[str], common: AbstractSet[str]) -> str:
    """Return the name in a row of words in capitals of a sentence; empty if it has none."""
    name = match.group()
    first = name.split()[0]
    if first in _NOT_NAMES:
        name = name[len(first) :].lstrip()
    name = name.rstrip(".,'’-")
    if match.start() == 0 and name.casefold() in common:
        return ""
    return name if len(name) > 2 and name[0].isupper() and name not in _MONTHS else ""


def supported_prompt(passages: Passages, answer: str, choose: Random) -> str:
    """Return a prompt with only the few sentences of the passages that support an answer."""
    wanted = words_of(answer) - words_of(passages.question)
    every = passages.sentences
    best = sorted(range(len(every)), key=lambda index: -len(wanted & words_of(every[index])))
    kept = sorted(best[: choose.randrange(1, 5)])
    context = " ".join(every[index] for index in kept)
    return f"question: {passages.question} context: {context}"


def short_answers(question: Question, passages: Passages) -> list[str]:
    """Return short right answers: a first sentence, and a bare date, name or number."""
    own, corrected = question.references
    first = [(texts_of_sentences(text) or [""])[0] for text in (corrected, own)]
    found = [text for text in first if len(text) > 15]
    asked = question.text.casefold()
    if asked.startswith(("when", "what year", "in what year")):
        if date := _DATE.search(first[1]):
            by = "on" if re.search(r"\b\d{1,2}\b", date.group()) else "in"
            found += [date.group(), f"It was {by} {date.group()}."]
    elif asked.startswith("who"):
        new = [
            one
            for one in passages.names_of(first[1])
            if one in passages and one.casefold() not in asked
        ]
        found += [new[0], f"{new[0]}."] if new else []
    elif asked.startswith("how many"):
        found += [f"{number}." for number in _NUMBER.findall(first[1])[:1]]
    return list(dict.fromkeys(found))


def true_denial(right: str, own: Passages, other: Question, choose: Random) -> str | None:
    """Return a right answer that also denies something wrong, if the text allows it.

    Its first sentence comes before it, negated and with a name that does not belong there, such as
    "Emma was not written by Charles Dickens. Emma was written by Jane Austen."; or only "No," does.
    """
    parts = texts_of_sentences(right)
    if not parts:
        return None
    if choose.random() < 0.25:
        return f"No, {right}"
    pool = choose.choice((own, Passages(other))).names
    denied = _negated(parts[0], choose)
    denied = denied and _with_other_name(denied, own, pool, choose)
    return denied and f"{denied} {right}"


def wrong_answers(
    right: str, own: Passages, other: Question, choose: Random, kinds: Sequence[str] | None = None
) -> dict[str, str]:
    """Return a wrong answer of each kind that is possible, all `KINDS` unless given.

    ``other`` is another question, whose names and answers do not belong here.
    """
    others = Passages(other)
    made: Mapping[str, Fault] = {
        **_FAULTS,
        "name from passages": lambda text, r: _with_other_name(text, own, own.names, r),
        "foreign name": lambda text, r: _with_other_name(text, own, others.names, r),
        "exchanged names": lambda text, r: _with_exchanged_names(text, own, r),
        "other numbers": lambda text, r: _with_other_numbers(text, own.numbers, r),
        "off topic": lambda _, r: r.choice([*other.references, other.answers[0]]),
        "off-topic sentence": lambda text, r: _with_sentence(text, other.references[0], r),
        "question again": lambda _, r: _question_again(own.question, r),
    }
    found = {kind: made[kind](right, choose) for kind in kinds or KINDS}
    return {
        kind: text
        for kind, text in found.items()
        if text is not None and text.strip() != right.strip() and len(text) <= _MAX_CHARACTERS
    }


def words_of(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return set(re.findall(r"\w+", text.casefold()))


def changed_words(right: str, wrong: str) -> set[str]:
    """Return the words of a right answer that a wrong one does not have at their place."""
    first, second = (re.findall(r"\w+", text.casefold()) for text in (right, wrong))
    changes = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    return {word for tag, at, end, *_ in changes if tag != "equal" for word in first[at:end]}


def _replaced(text: str, new_of: Mapping[str, str]) -> str:
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in new_of)
    return re.sub(pattern, lambda match: new_of[match.group()], text)


def _with_other_name(text: str, own: Passages, pool: Sequence[str], choose: Random) -> str | None:
    found = own.names_of(text)
    if not found:
        return None
    words = {word for name in found for word in name.split()}
    new = [name for name in pool if words.isdisjoint(name.split())]
    if not new:
        return None
    replaced = choose.sample(found, min(len(found), choose.choice((1, 1, 2))))
    return _replaced(text, {name: choose.choice(new) for name in replaced})


def _with_exchanged_names(text: str, own: Passages, choose: Random) -> str | None:
    found = own.names_of(text)
    found = [name for name in found if not any(name != one and name in one for one in found)]
    if len(found) < 2:
        return None
    first, second = choose.sample(found, 2)
    return _replaced(text, {first: second, second: first})


def _with_other_numbers(text: str, pool: Sequence[str], choose: Random) -> str | None:
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None
    changed = len(matches) if choose.random() < 0.5 else 1
    for match in sorted(choose.sample(matches, changed), key=lambda one: -one.start()):
        new = _other_number(match.group(), pool, choose)
        text = text[: match.start()] + new + text[match.end() :]
    if choose.random() < 0.4:
        text = _MONTH.sub(
            lambda match: choose.choice([one for one in _MONTHS if one != match.group()]), text
        )
    return text


def _other_number(number: str, pool: Sequence[str], choose: Random) -> str:
    similar = [one for one in pool if len(one) == len(number) and one != number]
    if similar and choose.random() < 0.5:
        return choose.choice(similar)
    if re.fullmatch(r"(?:17|18|19|20)\d\d", number):
        return str(int(number) + choose.choice((-37, -12, -8, -5, -2, -1, 1, 2, 3, 7, 19)))
    while True:
        new = re.sub(r"\d", lambda _: str(choose.randrange(1, 10)), number)
        if new != number:
            return new


def _with_opposite(text: str, choose: Random) -> str | None:
    matches = list(_OPPOSITE.finditer(text))
    if not matches:
        return None
    match = choose.choice(matches)
    return text[: match.start()] + _OPPOSITE_OF[match.group()] + text[match.end() :]


def _negated(text: str, choose: Random) -> str | None:
    matches = list(_VERB.finditer(text))
    if not matches:
        return None
    match = choose.choice(matches[:3])
    return f"{text[: match.end()]} not{text[match.end() :]}"


def _denied(text: str, choose: Random) -> str | None:
    matches = list(_VERB.finditer(text))
    if not matches:
        return None
    match = choose.choice(matches[:3])
    verb = match.group()
    new = choose.choice((f"{verb} never", _CONTRACTIONS.get(verb, f"{verb}n't")))
    return text[: match.start()] + new + text[match.end() :]


def _with_exchanged_numbers(text: str, choose: Random) -> str | None:
    own = list(dict.fromkeys(_NUMBER.findall(text)))
    if len(own) < 2:
        return None
    first, second = choose.sample(own, 2)
    new_of = {first: second, second: first}
    return _NUMBER.sub(lambda match: new_of.get(match.group(), match.group()), text)


def _repetitive(text: str, choose: Random) -> str | None:
    parts, words = texts_of_sentences(text), text.split()
    if not parts:
        return None
    way = choose.randrange(4)
    if way == 0:
        return " ".join([choose.choice(parts)] * choose.randrange(2, 6))
    if way == 1:
        at = choose.randrange(len(parts))
        return " ".join([*parts[: at + 1], *[parts[at]] * choose.randrange(1, 4), *parts[at + 1 :]])
    if way == 2:
        return " ".join(parts * 2)
    size = choose.randrange(2, 6)
    at = choose.randrange(max(1, len(words) - size))
    return " ".join(words[: at + size] + words[at : at + size] * choose.randrange(3, 9))


def _cut_off(text: str, choose: Random) -> str | None:
    words = text.split()
    if len(words) < 6:
        return None
    kept = words[: max(2, int(len(words) * choose.uniform(0.3, 0.85)))]
    while len(kept) > 2 and kept[-1][-1] in ".!?":
        kept.pop()
    return " ".join(kept)


def _first_half(text: str, _: Random) -> str | None:
    return text[: len(text) // 2].rstrip() if len(text) > 20 else None


def _shuffled(text: str, choose: Random) -> str | None:
    words = text.split()
    return " ".join(choose.sample(words, len(words))) if len(words) > 4 else None


def _with_sentence(text: str, foreign: str, choose: Random) -> str | None:
    parts, others = texts_of_sentences(text), texts_of_sentences(foreign)
    if not others:
        return None
    parts.insert(choose.randrange(len(parts) + 1), choose.choice(others))
    return " ".join(parts)


def _with_filler(text: str, fillers: Sequence[str], choose: Random) -> str:
    filler = choose.choice(fillers)
    return choose.choice((filler + text, filler + text, f"{text} {filler}{filler}".rstrip()))


def _question_again(question: str, choose: Random) -> str:
    return choose.choice(
        (
            question,
            question.rstrip("?") + ".",
            f"{question} {question}",
            f"The question is: {question}",
            f"You asked: {question} That is a good question.",
        )
    )


_FAULTS: Mapping[str, Fault] = {
    "empty": lambda _, __: "",
    "refusal": lambda _, choose: choose.choice(_REFUSALS),
    "opposite": _with_opposite,
    "cut off": _cut_off,
    "repetitive": _repetitive,
    "filler": lambda text, choose: _with_filler(text, _FILLERS, choose),
    "other refusal": lambda _, choose: choose.choice(_OTHER_REFUSALS),
    "first half": _first_half,
    "negated": _negated,
    "denied": _denied,
    "exchanged numbers": _with_exchanged_numbers,
    "shuffled words": _shuffled,
    "numbered filler": lambda text, choose: _with_filler(text, _OTHER_FILLERS, choose),
}

#: Kinds that the models are trained on.
KINDS = (
    "empty", "refusal", "question again", "off topic", "off-topic sentence", "repetitive",
    "cut off", "filler", "foreign name", "name from passages", "exchanged names", "other numbers",
    "opposite", "negated",
)  # fmt: skip

#: Kinds of which the models see no example in training.
HELD_OUT_KINDS = (
    "other refusal", "first half", "denied", "exchanged numbers", "shuffled words",
    "numbered filler",
)  # fmt: skip

#: Kinds that a few words tell from the right answer, and no form.
SUBTLE = ("name from passages", "exchanged names", "other numbers", "opposite")

#: Kinds that contain nothing of the right answer, and are wrong beside every right one.
WITHOUT_ANSWER = frozenset({"empty", "refusal", "question again", "off topic", "other refusal"})
