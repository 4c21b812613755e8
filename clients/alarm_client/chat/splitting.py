"""Texts as trainers send them, told into prompt and completion; what cannot be told is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alarm_client.chat import Message
from alarm_client.chat.templates import (
    PLAIN,
    THOUGHTS,
    ChatTemplate,
    begin_of,
    detect,
    detect_answer,
    unknown_markup,
)
from alarm_client.chat.turns import (
    SplitError,
    Turn,
    read_answer,
    read_turns,
    without_ends,
    without_thoughts,
)

__all__ = [
    "SplitError",
    "Texts",
    "answer_of",
    "pair_texts",
    "require_plain",
    "rest_of",
    "split_prompt",
    "split_query",
    "split_text",
]

Text = str | tuple[Message, ...]

#: Characters of a shortened prompt that must stand before the completion to be known again.
_ANCHOR = 32


@dataclass(frozen=True, slots=True)
class Texts:
    """A prompt and its completion, without any template's tokens."""

    prompt: Text
    completion: Text


def split_text(text: str, template: ChatTemplate | None) -> Texts:
    """Split one text that holds a whole conversation: its completion is the assistant's last turn.

    Without a template the one that the text begins in is taken. A `PLAIN` text is a completion of
    no prompt. Raises `SplitError`.
    """
    if template is PLAIN:
        return Texts("", without_ends(text, ()))
    template = template or detect(text)
    if template is None:
        raise SplitError(
            "it begins in no chat template that is known: name one (`?template=`), say what stands "
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
            "the assistant's marker stands in it more than once, and any of them may be the "
            "policy's own: have the trainer send prompts too, or use a template of special tokens"
        )
    return Texts(_prompt(turns[:num_prompt]), _completion(turns[num_prompt:]))


def split_query(query: str, prompt: str, template: ChatTemplate | None) -> Texts:
    """Split a text that begins with its prompt, which is given beside it.

    White space and the tokens around a text may differ, as decoding changes those. A prompt that
    was shortened from its start is known by its end. Raises `SplitError`.
    """
    if not prompt.strip():
        return split_text(query, template)
    return pair_texts(prompt, rest_of(query, prompt), template)


def rest_of(query: str, prompt: str) -> str:
    """Return what follows the prompt in a text that begins with it, as `split_query` finds it."""
    return query[_length_of_prompt(query, prompt) :]


def pair_texts(prompt: str, completion: str, template: ChatTemplate | None) -> Texts:
    """Take the template's tokens from a prompt and its completion.

    Without a template the one that the prompt begins in is taken, or none. What the prompt has
    begun of the assistant's turn is the beginning of the completion. Raises `SplitError`, also for
    a prompt in a template that is not known.
    """
    template = template or detect(prompt)
    if template is None:
        require_plain(prompt)
        return Texts(prompt, answer_of(completion, None))
    if template is PLAIN:
        return Texts(prompt, without_ends(completion, ()))
    turns, begun = _read_prompt(prompt, template)
    answer = read_answer((begun.text if begun else "") + completion, template)
    if begun is not None and begun.role == THOUGHTS:
        answer[0] = Turn(THOUGHTS, answer[0].text, answer[0].is_open)
    return Texts(_prompt(turns), _completion(_without_empty_last(without_thoughts(answer))))


def split_prompt(prompt: str, template: ChatTemplate | None) -> tuple[Text, str]:
    """Take the template's tokens from a prompt alone, as `pair_texts` does.

    Returns it with what it has begun of the assistant's turn. Raises `SplitError`.
    """
    template = template or detect(prompt)
    if template is None:
        require_plain(prompt)
    if template is None or template is PLAIN:
        return prompt, ""
    turns, begun = _read_prompt(prompt, template)
    return _prompt(turns), begun.text if begun and begun.role != THOUGHTS else ""


def answer_of(completion: str, template: ChatTemplate | None) -> Text:
    """Take the tokens from an answer to a prompt that was given without any, or as messages."""
    template = template or detect_answer(completion)
    if template is None or template is PLAIN:
        return without_ends(completion, ())
    answer = without_thoughts(read_answer(completion, template))
    return _completion(_without_empty_last(answer))


def require_plain(prompt: str) -> None:
    """Raise `SplitError` for a prompt with the special tokens of a template that is not known."""
    token = unknown_markup(prompt)
    if token is not None:
        raise SplitError(
            f"its prompt has {token!r}, a special token of no chat template that is known: name "
            "the policy's template (`template`), say what stands before turns and what ends them "
            "(`user`, `assistant`, `system`, `end`), or say `plain` for a prompt that is to be "
            "read as it is"
        )


def _read_prompt(prompt: str, template: ChatTemplate) -> tuple[list[Turn], Turn | None]:
    """Return a prompt's turns, and the turn of the assistant's that it has begun."""
    turns = read_turns(prompt[begin_of(prompt) :], template)
    begun = None
    if turns and turns[-1].role in ("assistant", THOUGHTS) and turns[-1].is_open:
        begun = turns.pop()
    elif turns and template.is_special:
        # A header that is none of this template's: it only looks like it.
        require_plain(" " + turns[-1].text)
    return without_thoughts(turns), begun


def _without_empty_last(turns: list[Turn]) -> list[Turn]:
    """Leave out a last turn that only begins: a header that ended the policy's text."""
    is_begun = len(turns) > 1 and turns[-1].role != "assistant" and not turns[-1].text
    return turns[:-1] if is_begun else turns


def _prompt(turns: list[Turn]) -> tuple[Message, ...]:
    if not turns:
        raise SplitError("nothing stands before the assistant's turn")
    return tuple(Message(turn.role, turn.text) for turn in turns)


def _completion(turns: list[Turn]) -> Text:
    if len(turns) == 1 and turns[0].role == "assistant":
        return turns[0].text
    return tuple(Message(turn.role, turn.text) for turn in turns)


def _length_of_prompt(query: str, prompt: str) -> int:
    """Return how many characters of a query its prompt takes."""
    if query.startswith(prompt):
        return len(prompt)
    start, known = begin_of(query), prompt[begin_of(prompt) :]
    if query.startswith(known, start):
        return start + len(known)
    found, wanted = _squeezed(query[start:]), _squeezed(known)
    num_visible = len(wanted) if found.startswith(wanted) else _visible_rest(found, wanted)
    length = _after(query, start, num_visible)
    for expected in prompt[len(prompt.rstrip()) :]:
        if not query.startswith(expected, length):
            break
        length += 1
    return length


def _visible_rest(found: str, prompt: str) -> int:
    """Return how many characters are left of a prompt that was shortened from its start.

    Both texts are without white space; the cut may have gone through a character.
    """
    whole = found.lstrip("\ufffd")
    anchor = whole[:_ANCHOR]
    start = prompt.find(anchor)
    is_one = start >= 0 and prompt.find(anchor, start + 1) < 0
    if not (is_one and len(anchor) == _ANCHOR and whole.startswith(prompt[start:])):
        raise SplitError("it does not begin with its prompt, nor with the end of it")
    return len(found) - len(whole) + len(prompt) - start


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _after(text: str, start: int, num_visible: int) -> int:
    """Return where text stands behind so many characters that are no white space."""
    for run in re.compile(r"\S+").finditer(text, start):
        if num_visible <= run.end() - run.start():
            return run.start() + num_visible
        num_visible -= run.end() - run.start()
    return len(text)
