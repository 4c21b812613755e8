"""What a judge is asked of two completions, and what its answers come to: pure."""

from __future__ import annotations

import math
import re
from enum import StrEnum

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

_VERDICT = re.compile(r"verdict\W{1,8}(tie|[ab])\b", re.IGNORECASE)


def messages_for(prompt: str, first: str, second: str, criteria: str) -> list[dict[str, str]]:
    """Return the chat that asks for a choice between ``first`` as A and ``second`` as B."""
    asked = (
        f"{criteria}\n\n<prompt>\n{prompt}\n</prompt>\n\n<answer_A>\n{first}\n</answer_A>\n\n"
        f"<answer_B>\n{second}\n</answer_B>"
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": asked}]


def read_choice(text: str) -> Choice | None:
    """Read the last verdict in a judge's words; None where there is none."""
    found = _VERDICT.findall(text)
    if not found:
        return None
    last = found[-1].upper()
    return Choice.TIE if last == "TIE" else Choice(last)


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
