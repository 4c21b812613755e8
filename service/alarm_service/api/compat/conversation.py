"""Splits conversations in a chat template into turns, and into prompt and completion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from alarm_models.types import Message
from alarm_service.api.compat.templates import (
    ENDS,
    PADS,
    PLAIN,
    THOUGHTS,
    ChatTemplate,
    begin_of,
    detect,
    detect_answer,
    unknown_markup,
)

__all__ = [
    "SplitError",
    "Texts",
    "Turn",
    "answer_of",
    "pair_texts",
    "read_answer",
    "read_turns",
    "require_plain",
    "rest_of",
    "split_prompt",
    "split_query",
    "split_text",
    "without_ends",
    "without_thoughts",
]

#: The empty thoughts that a template writes when thinking is off; the policy did not write them.
_NO_THOUGHTS = re.compile(r"(?:<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*")
#: More turns than any real conversation; a text of nothing but markers has more.
_MAX_TURNS = 10_000

#: Ends that are also HTML tags are removed at the end of a turn, not inside it.
_OPEN, _CLOSE = "<s>", "</s>"
_AMBIGUOUS = frozenset({_OPEN, _CLOSE})


class SplitError(ValueError):
    """A text cannot be split into prompt and completion; the message says why."""


@dataclass(frozen=True, slots=True)
class _StrikeTags:
    """Counts of the HTML tags `<s>` and `</s>` in a text; a `<s>` that starts it is not counted."""

    num_open: int
    num_closed: int

    @classmethod
    def of(cls, text: str, end: int) -> _StrikeTags:
        num_open = text.count(_OPEN, 0, end) - text.startswith(_OPEN)
        return cls(num_open, text.count(_CLOSE, 0, end))

    def without(self, end: str) -> _StrikeTags:
        if end == _CLOSE:
            return _StrikeTags(self.num_open, self.num_closed - 1)
        return _StrikeTags(self.num_open - 1, self.num_closed)


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
    before, turns = _split_at_headers(text, template)
    first = _turn("system", before, template)
    if not turns or (first.text.strip() and not template.begins_with_system):
        raise SplitError(f"it does not start with a turn of the template {template.name!r}")
    return [first, *turns] if first.text.strip() else turns


def read_answer(text: str, template: ChatTemplate) -> list[Turn]:
    """Return the turns that follow a prompt: the assistant's, and any after it."""
    before, turns = _split_at_headers(text, template)
    first = _turn("assistant", before, template)
    own = ("assistant", THOUGHTS)
    repeats_header = turns and turns[0].role in own and not first.text.strip()
    return turns if repeats_header else [first, *turns]


def without_ends(text: str, ends: Sequence[str]) -> str:
    """Remove the end-of-text tokens at the end of a text, and the padding after them.

    Cuts at the first of the trailing tokens that is one of ``ends``, if one is; else at the first
    that is known to end or pad texts. A token that is also HTML is kept where another end follows
    it, and where it closes a tag of the text.
    """
    known = (*ends, *ENDS)
    cut = at = len(text)
    is_end = is_ended = False
    html: _StrikeTags | None = None
    while True:
        while at and text[at - 1].isspace():
            at -= 1
        if not text.endswith(known, 0, at):
            return text[:cut]
        token = next(token for token in known if text.endswith(token, 0, at))
        if token in _AMBIGUOUS:
            if is_ended and token not in ends:
                return text[:cut]
            html = html or _StrikeTags.of(text, at)
            if token == _CLOSE and html.num_open >= html.num_closed > 0:
                return text[:cut]
            html = html.without(token)
        elif token not in PADS:
            is_ended = True
        at -= len(token)
        if token in ends or not is_end:
            cut, is_end = at, is_end or token in ends


def _split_at_headers(text: str, template: ChatTemplate) -> tuple[str, list[Turn]]:
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
    content = without_ends(text, template.ends)
    is_open = content == text
    for token in template.ends:
        if token not in _AMBIGUOUS:
            content = content.replace(token, "")
    if role == "assistant" and (empty := _NO_THOUGHTS.match(content)):
        content = content[empty.end() :]
    return Turn(role, content.strip() if template.strips else content, is_open)


def _separate_system(turn: Turn) -> list[Turn]:
    """Separate Llama 2's system text from the user's turn that contains it."""
    text = turn.text.lstrip() if turn.role == "user" else ""
    end = text.find("<</SYS>>")
    if not text.startswith("<<SYS>>") or end < 0:
        return [turn]
    system, user = text[len("<<SYS>>") : end].strip(), text[end + len("<</SYS>>") :].strip()
    return [Turn("system", system, False), Turn("user", user, turn.is_open)]


def without_thoughts(turns: list[Turn]) -> list[Turn]:
    """Drop the thoughts; thoughts that no answer follows become the answer."""
    answers = [at for at, turn in enumerate(turns) if turn.role == "assistant"]
    last = answers[-1] if answers else -1
    kept = []
    for at, turn in enumerate(turns):
        if turn.role != THOUGHTS:
            kept.append(turn)
        elif at > last:
            kept.append(Turn("assistant", turn.text, turn.is_open))
    return kept


Text = str | tuple[Message, ...]

#: Characters of a truncated prompt that must match before the completion.
_ANCHOR = 32


@dataclass(frozen=True, slots=True)
class Texts:
    """A prompt and its completion, without any template's tokens."""

    prompt: Text
    completion: Text


def split_text(text: str, template: ChatTemplate | None) -> Texts:
    """Split the text of a whole conversation: its completion is the assistant's last turn.

    Without a template it is detected from the start of the text. A `PLAIN` text is a completion
    without a prompt. Raises `SplitError`.
    """
    if template is PLAIN:
        return Texts("", without_ends(text, ()))
    template = template or detect(text)
    if template is None:
        raise SplitError(
            "it does not start with a known chat template: name one (`?template=`), give the text "
            "before turns (`?user=...&assistant=...`), or `?template=plain` for completions alone"
        )
    turns = _without_empty_last(without_thoughts(read_turns(text[begin_of(text) :], template)))
    num_prompt = len(turns)
    while num_prompt and turns[num_prompt - 1].role == "assistant":
        num_prompt -= 1
    if num_prompt == len(turns):
        raise SplitError(f"it does not end with an assistant's turn ({template.name})")
    if not template.is_special and sum(turn.role == "assistant" for turn in turns) > 1:
        raise SplitError(
            "it has the assistant's marker more than once, and the policy may have written any of "
            "them: have the trainer send prompts too, or use a template with special tokens"
        )
    return Texts(_prompt(turns[:num_prompt]), _completion(turns[num_prompt:]))


def split_query(query: str, prompt: str, template: ChatTemplate | None) -> Texts:
    """Split a text that starts with the given prompt.

    White space and the tokens around the texts may differ, as decoding changes them. A prompt that
    was truncated at its start is recognized by its end. Raises `SplitError`.
    """
    if not prompt.strip():
        return split_text(query, template)
    return pair_texts(prompt, rest_of(query, prompt), template)


def rest_of(query: str, prompt: str) -> str:
    """Return what follows the prompt in a text that starts with it, as `split_query` does."""
    return query[_length_of_prompt(query, prompt) :]


def pair_texts(prompt: str, completion: str, template: ChatTemplate | None) -> Texts:
    """Remove the template's tokens from a prompt and its completion.

    Without a template it is detected from the prompt, and may be none. If the prompt has started
    the assistant's turn, the completion starts with that text. Raises `SplitError`, also for a
    prompt in an unknown template.
    """
    template = template or detect(prompt)
    if template is None:
        require_plain(prompt)
        return Texts(prompt, answer_of(completion, None))
    if template is PLAIN:
        return Texts(prompt, without_ends(completion, ()))
    turns, started = _read_prompt(prompt, template)
    answer = read_answer((started.text if started else "") + completion, template)
    if started is not None and started.role == THOUGHTS:
        answer[0] = Turn(THOUGHTS, answer[0].text, answer[0].is_open)
    return Texts(_prompt(turns), _completion(_without_begun_reply(without_thoughts(answer))))


def split_prompt(prompt: str, template: ChatTemplate | None) -> tuple[Text, str]:
    """Remove the template's tokens from a prompt alone, as `pair_texts` does.

    Returns it with the start of the assistant's turn that it has. Raises `SplitError`.
    """
    template = template or detect(prompt)
    if template is None:
        require_plain(prompt)
    if template is None or template is PLAIN:
        return prompt, ""
    turns, started = _read_prompt(prompt, template)
    return _prompt(turns), started.text if started and started.role != THOUGHTS else ""


def answer_of(completion: str, template: ChatTemplate | None) -> Text:
    """Remove the tokens from an answer whose prompt has none, or is messages."""
    template = template or detect_answer(completion)
    if template is None or template is PLAIN:
        return without_ends(completion, ())
    answer = without_thoughts(read_answer(completion, template))
    return _completion(_without_begun_reply(answer))


def require_plain(prompt: str) -> None:
    """Raise `SplitError` for a prompt with special tokens of an unknown template."""
    token = unknown_markup(prompt)
    if token is not None:
        raise SplitError(
            f"its prompt has {token!r}, a special token of no known chat template: name the "
            "policy's template (`template`), give the texts before turns and after them "
            "(`user`, `assistant`, `system`, `end`), or use the template `plain`, which reads a "
            "prompt as it is"
        )


def _read_prompt(prompt: str, template: ChatTemplate) -> tuple[list[Turn], Turn | None]:
    """Return a prompt's turns, and the assistant's turn that it has started."""
    turns = read_turns(prompt[begin_of(prompt) :], template)
    started = None
    if turns and turns[-1].role in ("assistant", THOUGHTS) and turns[-1].is_open:
        started = turns.pop()
    elif turns and template.is_special:
        # It may only look like this template.
        require_plain(" " + turns[-1].text)
    return without_thoughts(turns), started


def _without_empty_last(turns: list[Turn]) -> list[Turn]:
    """Drop a last turn without text: a header that ended the policy's text."""
    is_empty = len(turns) > 1 and turns[-1].role != "assistant" and not turns[-1].text
    return turns[:-1] if is_empty else turns


def _without_begun_reply(turns: list[Turn]) -> list[Turn]:
    """Drop a last turn without text, also a reply that only begins after a tool's result."""
    turns = _without_empty_last(turns)
    is_after_tool = len(turns) > 1 and turns[-2].role == "tool"
    is_begun = is_after_tool and turns[-1].role == "assistant" and turns[-1].is_open
    return turns[:-1] if is_begun and not turns[-1].text else turns


def _prompt(turns: list[Turn]) -> tuple[Message, ...]:
    if not turns:
        raise SplitError("it has no turn before the assistant's")
    return tuple(Message(turn.role, turn.text) for turn in turns)


def _completion(turns: list[Turn]) -> Text:
    if len(turns) == 1 and turns[0].role == "assistant":
        return turns[0].text
    return tuple(Message(turn.role, turn.text) for turn in turns)


def _length_of_prompt(query: str, prompt: str) -> int:
    """Return the length of the prompt at the start of a query, in characters."""
    if query.startswith(prompt):
        return len(prompt)
    start, known = begin_of(query), prompt[begin_of(prompt) :]
    if query.startswith(known, start):
        return start + len(known)
    squeezed, expected = _squeezed(query[start:]), _squeezed(known)
    if squeezed.startswith(expected):
        num_visible = len(expected)
    else:
        num_visible = _visible_rest(squeezed, expected)
    length = _after(query, start, num_visible)
    for space in prompt[len(prompt.rstrip()) :]:
        if not query.startswith(space, length):
            break
        length += 1
    return length


def _visible_rest(query: str, prompt: str) -> int:
    """Return how many characters are left of a prompt that was truncated at its start.

    Both texts are without white space; the cut may be within a character.
    """
    whole = query.lstrip("\ufffd")
    anchor = whole[:_ANCHOR]
    start = prompt.find(anchor)
    is_one = start >= 0 and prompt.find(anchor, start + 1) < 0
    if not (is_one and len(anchor) == _ANCHOR and whole.startswith(prompt[start:])):
        raise SplitError("it starts neither with its prompt nor with the end of it")
    return len(query) - len(whole) + len(prompt) - start


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _after(text: str, start: int, num_visible: int) -> int:
    """Return the position after this many characters that are not white space."""
    for run in re.compile(r"\S+").finditer(text, start):
        if num_visible <= run.end() - run.start():
            return run.start() + num_visible
        num_visible -= run.end() - run.start()
    return len(text)
