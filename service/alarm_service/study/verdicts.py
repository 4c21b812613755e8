"""What a judge is asked of two completions, and what its answers come to: pure."""

from __future__ import annotations

import math
import re
from enum import StrEnum

from alarm_models.remote.ratings import RatingError, answer_part

__all__ = ["CRITERIA", "Choice", "messages_for", "outcome_of", "read_choice"]


class Choice(StrEnum):
    """What a judge says of two answers that it knows as A and B."""

    A = "A"
    B = "B"
    TIE = "tie"


CRITERIA = (
    "Which answer helps the asker more? Weigh whether it is true, whether it answers what was "
    "asked, and whether anything important is missing. Do not favour an answer for its length or "
    "for standing first."
)

_SYSTEM = (
    "You compare two answers to one prompt. Say in a sentence or two what tells them apart, then "
    "end with a line that is exactly `Verdict: A`, `Verdict: B` or `Verdict: tie`."
)

#: "Verdict: A", "**Verdict:** [[B]]", "verdict - tie"; not the article of "a verdict: a close one".
_VERDICT = re.compile(
    r"verdict\b\W{1,8}(?:(?:is|answer|response|assistant)\b\W{1,4}){0,3}"
    r"(?:(?P<tie>(?:a )?tie\b)|(?P<letter>[ab])(?!\w))(?=(?P<behind>[^\n]{0,200}))",
    re.IGNORECASE,
)
#: What may stand on a line behind a letter that is the verdict.
_BEHIND = re.compile(
    r"\W*$|[\s*_`\"')\]}]*(?:[(.,;:–—-]|(?:is|wins|was|because|since|as it|for|by)\b)",
    re.IGNORECASE,
)
#: Where both letters are named, none is the verdict.
_BOTH = re.compile(r"^\W{0,4}(?:and|or|[/|&=,])\W{0,4}[ab]\b", re.IGNORECASE)


def messages_for(prompt: str, first: str, second: str, criteria: str) -> list[dict[str, str]]:
    """Return the chat that asks for a choice between ``first`` as A and ``second`` as B."""
    asked = (
        f"{criteria}\n\n<prompt>\n{prompt}\n</prompt>\n\n<answer_A>\n{first}\n</answer_A>\n\n"
        f"<answer_B>\n{second}\n</answer_B>"
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def read_choice(text: str) -> Choice | None:
    """Read the last verdict in a judge's words; None where there is none, or it names both."""
    try:
        answer = answer_part(text)
    except RatingError:
        return None
    choices = [_choice(found) for found in _VERDICT.finditer(answer)]
    return choices[-1] if choices else None


def _choice(found: re.Match[str]) -> Choice | None:
    if found["tie"]:
        return Choice.TIE
    if _BOTH.match(found["behind"]) or not _BEHIND.match(found["behind"]):
        return None
    return Choice(found["letter"].upper())


def outcome_of(forward: Choice | None, backward: Choice | None) -> float:
    """Return 1 where the first wins, -1 the second, 0 for a tie, NaN where an answer is unread.

    ``forward`` was asked with the first as A, ``backward`` with the second as A. Only a choice
    that both orders confirm is a win: a judge that follows the order has said nothing.
    """
    if forward is None or backward is None:
        return math.nan
    if (forward, backward) == (Choice.A, Choice.B):
        return 1.0
    return -1.0 if (forward, backward) == (Choice.B, Choice.A) else 0.0
