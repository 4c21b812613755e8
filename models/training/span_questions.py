"""Questions whose answers are spans of Wikipedia paragraphs, and right and wrong answers to them.

There are many more of them than questions with human feedback, so names, numbers and passages
differ more. They have no preferences: they only teach what the passages support.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

from alarm_models.preprocessing.segmentation import sentences
from alarm_models.types import Span
from data import Question

__all__ = ["SpanQuestion", "load_span_questions"]

#: Longer answers are sentences or lists.
_MAX_ANSWER_CHARACTERS = 60

#: Paragraphs with more characters that are not ASCII are left out: each may be a token.
_MAX_OTHER_CHARACTERS = 20

_VERBS_IN_FRONT = "is|was|are|were|do|does|did|has|have|had|can|could|will|would|should"

#: Shapes of questions, and statements that answer them.
_STATEMENTS = tuple(
    (re.compile(pattern, re.IGNORECASE), statement)
    for pattern, statement in (
        (rf"who (?!(?:{_VERBS_IN_FRONT})\b)(.+)", "{answer} {0}."),
        (
            r"(?:who|what) (is|was|are|were) ((?:the|a|an|his|her|its|their) .+)",
            "{1} {0} {answer}.",
        ),
        (
            r"(?:when|where|(?:in )?(?:what|which) year) (was|were) (.+?) "
            r"(born|built|held|made|written|sold|\w+ed)\b(.*)",
            "{1} {0} {2}{3} {in_answer}.",
        ),
        (r"how many (.+?) (are|were) (.+)", "{answer} {0} {1} {2}."),
        (r"(?:which|what) (?:\w+ ){1,3}?(is|was|has|had) (.+)", "{answer} {0} {1}."),
    )
)

_HAS_PREPOSITION = re.compile(r"(?:in|on|at|from|by|during|between|around|near)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SpanQuestion:
    """A question, the paragraph that has its answer at ``span``, and the article's others.

    ``rivals`` answer other questions on the article, and share no text with any answer to this one.
    """

    text: str
    title: str
    paragraph: str
    span: Span
    others: Sequence[str]
    rivals: Sequence[str]

    @property
    def answer(self) -> str:
        """The shortest answer that people gave."""
        return self.paragraph[self.span.start : self.span.end]

    def with_prompt(self, choose: Random) -> Question:
        """Return the question with a prompt of its paragraph and up to three others, in any order.

        Prompts have the format of those of the questions with human feedback.
        """
        passages = [self.paragraph, *choose.sample(self.others, min(3, len(self.others)))]
        passages = passages[: choose.randrange(1, 5)]
        choose.shuffle(passages)
        beginnings = ("", f"{self.title}\n\n")
        context = " | ".join(
            f"wikipage: {self.title} text: {choose.choice(beginnings)}{passage}"
            for passage in passages
        )
        prompt = f"question: {self.text} context: {context}"
        return Question(self.text, prompt, (), (), (), ())

    def short_answers(self) -> list[str]:
        """Return the bare answer, with a full stop, and as a statement made of the question.

        Statements are made by simple rules; some are clumsy.
        """
        statement = self._statement()
        found = (self.answer, f"{self.answer.rstrip('.')}.", *([statement] if statement else []))
        return list(dict.fromkeys(found))

    def long_answers(self) -> list[str]:
        """Return the sentence of the paragraph that has the answer, alone and with the next."""
        return list(dict.fromkeys((self._sentences(0), self._sentences(1))))

    def with_rival(self, text: str, choose: Random) -> str | None:
        """Replace the answer in a text by a rival of the same form, if there are both."""
        place = re.search(rf"(?<!\w){re.escape(self.answer)}(?!\w)", text, re.IGNORECASE)
        alike = [one for one in self.rivals if _form(one) == _form(self.answer)]
        if place is None or not alike:
            return None
        return text[: place.start()] + choose.choice(alike) + text[place.end() :]

    def _sentences(self, following: int) -> str:
        """Return the sentence that has the answer, with so many that follow it."""
        spans = sentences(self.paragraph)
        inside = [
            at
            for at, one in enumerate(spans)
            if one.start < self.span.end and self.span.start < one.end
        ]
        if not inside:
            return self.answer
        last = min(inside[-1] + following, len(spans) - 1)
        return self.paragraph[spans[inside[0]].start : spans[last].end]

    def _statement(self) -> str | None:
        question = self.text.strip().rstrip("?").rstrip()
        for pattern, statement in _STATEMENTS:
            if match := pattern.fullmatch(question):
                answer = self.answer.rstrip(".")
                in_answer = answer if _HAS_PREPOSITION.match(answer) else f"in {answer}"
                made = statement.format(*match.groups(), answer=answer, in_answer=in_answer)
                return made[0].upper() + made[1:]
        return None


def _form(text: str) -> str:
    """Tell numbers, names and other words apart."""
    if re.search(r"\d", text):
        return "number"
    return "name" if text[:1].isupper() else "words"


def load_span_questions(folder: Path) -> tuple[SpanQuestion, ...]:
    """Read ``new_wiki_v1.0.json`` and ``xquad.en.json``, both in the format of SQuAD."""
    return tuple(
        question
        for name in ("new_wiki_v1.0.json", "xquad.en.json")
        for article in json.loads((folder / name).read_text(encoding="utf-8"))["data"]
        for question in _of_article(article)
    )


def _of_article(article: Mapping[str, Any]) -> Iterator[SpanQuestion]:
    """Find the questions whose shortest answer is short."""
    paragraphs = [one["context"] for one in article["paragraphs"]]
    asked = [
        (paragraph["context"], row["question"].strip(), sorted(row["answers"], key=_length))
        for paragraph in article["paragraphs"]
        if sum(not one.isascii() for one in paragraph["context"]) <= _MAX_OTHER_CHARACTERS
        for row in paragraph["qas"]
        if row["answers"] and _length(min(row["answers"], key=_length)) <= _MAX_ANSWER_CHARACTERS
    ]
    every = list(dict.fromkeys(answers[0]["text"].rstrip(".") for *_, answers in asked))
    for paragraph, text, answers in asked:
        known = [text.casefold(), *(one["text"].casefold() for one in answers)]
        start = answers[0]["answer_start"]
        yield SpanQuestion(
            text,
            unquote(article["title"]).replace("_", " "),
            paragraph,
            Span(start, start + _length(answers[0])),
            [one for one in paragraphs if one != paragraph],
            [one for one in every if not _overlaps(one.casefold(), known)],
        )


def _length(answer: Mapping[str, Any]) -> int:
    return len(answer["text"])


def _overlaps(text: str, others: Sequence[str]) -> bool:
    return any(text in one or one in text for one in others)
