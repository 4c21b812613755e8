"""Parses a conversation in a chat template into turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from alarm_service.api.compat.templates import ENDS, PADS, THOUGHTS, ChatTemplate

__all__ = ["SplitError", "Turn", "read_answer", "read_turns", "without_ends", "without_thoughts"]

#: Empty thoughts that a template writes where thinking is off; no policy wrote them.
_NO_THOUGHTS = re.compile(r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*")
#: More than any conversation has; a text of nothing but markers has more.
_MAX_TURNS = 10_000

#: Ends that are also HTML tags are removed at the end of a turn, not inside it.
_OPEN, _CLOSE = "<s>", "</s>"
_AMBIGUOUS = frozenset({_OPEN, _CLOSE})


class SplitError(ValueError):
    """A text cannot be split into prompt and completion; the message says why."""


@dataclass(frozen=True, slots=True)
class _Strikes:
    """Counts of the HTML tag `s` in a text, without one that is its first token."""

    num_open: int
    num_closed: int

    @classmethod
    def of(cls, text: str, end: int) -> _Strikes:
        num_open = text.count(_OPEN, 0, end) - text.startswith(_OPEN)
        return cls(num_open, text.count(_CLOSE, 0, end))

    def without(self, end: str) -> _Strikes:
        if end == _CLOSE:
            return _Strikes(self.num_open, self.num_closed - 1)
        return _Strikes(self.num_open - 1, self.num_closed)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; ``is_open`` unless the template's end-of-turn token follows it."""

    role: str
    text: str
    is_open: bool


def read_turns(text: str, template: ChatTemplate) -> list[Turn]:
    """Return the turns of a conversation, without the template's tokens.

    Raises `SplitError` where the text does not start with a turn; a system turn needs no header
    where the template starts with one.
    """
    before, turns = _at_headers(text, template)
    first = _turn("system", before, template)
    if not turns or (first.text.strip() and not template.begins_with_system):
        raise SplitError(f"it does not begin with a turn of the template {template.name!r}")
    return [first, *turns] if first.text.strip() else turns


def read_answer(text: str, template: ChatTemplate) -> list[Turn]:
    """Return the turns that follow a prompt: the assistant's, and any after it."""
    before, turns = _at_headers(text, template)
    first = _turn("assistant", before, template)
    own = ("assistant", THOUGHTS)
    begins_anew = turns and turns[0].role in own and not first.text.strip()
    return turns if begins_anew else [first, *turns]


def without_ends(text: str, ends: Sequence[str]) -> str:
    """Remove the end-of-text tokens at the end of a text, and the padding after them.

    Cuts at the first of the trailing tokens that is one of ``ends``, if one is; else at the first
    that is known to end or pad texts. A token that is also HTML is kept where another end follows
    it, and where it closes a tag of the text.
    """
    known = (*ends, *ENDS)
    cut = at = len(text)
    is_end = is_ended = False
    html: _Strikes | None = None
    while True:
        while at and text[at - 1].isspace():
            at -= 1
        if not text.endswith(known, 0, at):
            return text[:cut]
        token = next(token for token in known if text.endswith(token, 0, at))
        if token in _AMBIGUOUS:
            if is_ended and token not in ends:
                return text[:cut]
            html = html or _Strikes.of(text, at)
            if token == _CLOSE and html.num_open >= html.num_closed > 0:
                return text[:cut]
            html = html.without(token)
        elif token not in PADS:
            is_ended = True
        at -= len(token)
        if token in ends or not is_end:
            cut, is_end = at, is_end or token in ends


def _at_headers(text: str, template: ChatTemplate) -> tuple[str, list[Turn]]:
    """Return the text before the first header, and the turns after headers."""
    headers = list(islice(template.header.finditer(text), _MAX_TURNS + 1))
    if len(headers) > _MAX_TURNS:
        raise SplitError(f"it has more than {_MAX_TURNS} turns of the template {template.name!r}")
    starts = [match.start() for match in headers] + [len(text)]
    turns = [
        _turn(template.role(match), text[match.end() : end], template)
        for match, end in zip(headers, starts[1:], strict=True)
    ]
    return text[: starts[0]], [plain for turn in turns for plain in _separate_system(turn)]


def _turn(role: str, text: str, template: ChatTemplate) -> Turn:
    said = without_ends(text, template.ends)
    is_open = said == text
    for token in template.ends:
        if token not in _AMBIGUOUS:
            said = said.replace(token, "")
    if role == "assistant" and (empty := _NO_THOUGHTS.match(said)):
        said = said[empty.end() :]
    return Turn(role, said.strip() if template.strips else said, is_open)


def _separate_system(turn: Turn) -> list[Turn]:
    """Separate Llama 2's system text from the user's turn that contains it."""
    said = turn.text.lstrip() if turn.role == "user" else ""
    end = said.find("<</SYS>>")
    if not said.startswith("<<SYS>>") or end < 0:
        return [turn]
    system, user = said[len("<<SYS>>") : end].strip(), said[end + len("<</SYS>>") :].strip()
    return [Turn("system", system, False), Turn("user", user, turn.is_open)]


def without_thoughts(turns: list[Turn]) -> list[Turn]:
    """Drop the turns that are thoughts; thoughts that no answer follows are the answer."""
    answers = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
    last = answers[-1] if answers else -1
    kept = []
    for at, turn in enumerate(turns):
        if turn.role != THOUGHTS:
            kept.append(turn)
        elif at > last:
            kept.append(Turn("assistant", turn.text, turn.is_open))
    return kept
