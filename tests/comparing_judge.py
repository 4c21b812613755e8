"""Judges that compare answers, for a scripted chat endpoint."""

import json
import re
from collections.abc import Callable
from typing import Any

from scripted_judge import Say, Script, answer_id

_ANSWER = re.compile(r"^\[(\w+) answer (\d+)\]\n(.*?)\n\[\1 end of answer \2\]$", re.M | re.S)


def shown_answers(body: dict[str, Any]) -> list[str]:
    """Return the completions that a question shows, in order."""
    return [text for _, _, text in _ANSWER.findall(body["messages"][-1]["content"])]


def answers_with(body: dict[str, Any], **values: Any) -> list[Say]:
    """Return a judge's JSON answer to a question, once for each vote that it asks for."""
    text = json.dumps({"id": answer_id(body), "reason": "So.", **values})
    return [Say(text)] * body.get("n", 1)


def prefers(value: Callable[[str], float]) -> Script:
    """Return the script of a judge that prefers the answer of the higher value."""

    def script(body: dict[str, Any]) -> list[Say]:
        first, second = map(value, shown_answers(body))
        return answers_with(body, better=0 if first == second else 1 if first > second else 2)

    return script
