"""Texts as trainers send them, told into prompt and completion; what cannot be told is an error."""

from __future__ import annotations

import re
from dataclasses import dataclass

from alarm_models.sample import Message
from alarm_service.compat.templates import PLAIN, ChatTemplate, begin_of, detect
from alarm_service.compat.turns import SplitError, Turn, read_answer, read_turns, without_ends

__all__ = ["SplitError", "Texts", "pair_texts", "split_query", "split_text"]

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
    turns = _without_empty_last(read_turns(text[begin_of(text) :], template))
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
    return pair_texts(prompt, query[_length_of_prompt(query, prompt) :], template)


def pair_texts(prompt: str, completion: str, template: ChatTemplate | None) -> Texts:
    """Take the template's tokens from a prompt and its completion.

    Without a template the one that the prompt begins in is taken, or none. What the prompt has
    begun of the assistant's turn is the beginning of the completion. Raises `SplitError`.
    """
    template = template or detect(prompt) or PLAIN
    if template is PLAIN:
        return Texts(prompt, without_ends(completion, ()))
    turns = read_turns(prompt[begin_of(prompt) :], template)
    begun = ""
    if turns and turns[-1].role == "assistant" and turns[-1].is_open:
        begun = turns.pop().text
    answer = _without_empty_last(read_answer(begun + completion, template))
    return Texts(_prompt(turns), _completion(answer))


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
