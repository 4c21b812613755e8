"""Converts prompts and completions from the formats of trainers to those of Sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from alarm_client.chat import Message, conversation
from alarm_client.chat.conversation import (
    SplitError,
    answer_of,
    pair_texts,
    require_plain,
    split_prompt,
    split_text,
    without_ends,
)
from alarm_client.chat.templates import (
    ENDS,
    MAX_ENDS,
    MAX_MARKER,
    PLAIN,
    TEMPLATES,
    ChatTemplate,
    detect,
    detect_answer,
    marked,
    unknown_markup,
)
from alarm_client.types import Sample, Text

__all__ = [
    "END_TOKENS",
    "completion_of",
    "decoded_prompt",
    "plain_samples",
    "prompt_of",
    "read_each",
    "rest_of",
    "role_of",
    "split_messages",
    "split_query",
    "template_of",
    "without_end_tokens",
]

T = TypeVar("T")

# End-of-turn tokens of policies, left in the text by trainers that decode special tokens.
END_TOKENS = ENDS

_MARKERS = ("user", "assistant", "system", "end")


def template_of(name: str | None) -> ChatTemplate | None:
    """The chat template that a setting names or describes; None if it is to be detected.

    A description is JSON: the text before a turn by role, and `end`, the texts that end a turn.
    Raises ValueError if it is invalid.
    """
    if name is None or name in TEMPLATES:
        return None if name is None else TEMPLATES[name]
    try:
        given = json.loads(name)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise ValueError(
            f"must be one of {', '.join(TEMPLATES)}, or JSON such as "
            '{"user": "Human:", "assistant": "Assistant:", "end": ["</s>"]}'
        )
    unknown = sorted(set(given) - set(_MARKERS))
    if unknown or not given.get("assistant"):
        raise ValueError(f"must have assistant, and otherwise only {', '.join(_MARKERS)}")
    ends = given.get("end") or []
    ends = [ends] if isinstance(ends, str) else list(ends)
    markers = [*ends, *(given.get(role) or "" for role in _MARKERS[:3])]
    if len(ends) > MAX_ENDS or any(
        not isinstance(marker, str) or len(marker) > MAX_MARKER for marker in markers
    ):
        raise ValueError(
            f"must have texts of at most {MAX_MARKER} characters, and at most {MAX_ENDS} ends"
        )
    return marked(
        user=given.get("user"),
        assistant=given["assistant"],
        system=given.get("system"),
        ends=ends,
    )


def plain_samples(
    samples: Sequence[Sample], template: ChatTemplate | None, trainer: str
) -> list[Sample]:
    """The samples without the policy's chat template, as the server's URLs split the same texts.

    ValueError if the template of a prompt is unknown, or the prompt does not fit the named one.
    """
    found = []
    for index, sample in enumerate(samples):
        try:
            found.append(_plain_sample(sample, template))
        except SplitError as error:
            raise ValueError(
                f"{trainer}: sample {index} cannot be split: {error} (the setting template, or "
                "ALARM_TEMPLATE)"
            ) from error
    return found


def decoded_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a prompt's ids, with special tokens if they separate its turns."""
    marked_text: str = tokenizer.decode(ids, skip_special_tokens=False)
    if detect(marked_text) is not None or unknown_markup(marked_text) is not None:
        return marked_text
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def prompt_of(value: Any) -> Text:
    """A prompt as a string, or as messages with a role and a text each."""
    if isinstance(value, str):
        return value
    if _is_message(value):
        return [_message(value)]
    return [_message(message) for message in _messages(value, "a prompt")]


def completion_of(value: Any) -> str:
    """The text of a completion: a string, a message, `{"message": ...}`, or the last of messages.

    A message may be a mapping or an object with a role and a content. TypeError for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    inner = _get(value, "message")
    if inner is not None:
        return completion_of(inner)
    if _is_message(value):
        return _content(_get(value, "content"))
    messages = _messages(value, "a completion")
    if not messages:
        return ""
    last = messages[-1]
    return last if isinstance(last, str) else _message_content(last)


def split_query(query: str, prompt: str) -> str:
    """The completion in a query that starts with its prompt; ValueError if it does not."""
    _require_texts(query, prompt)
    if not query.startswith(prompt):
        raise ValueError(_no_start(query, prompt))
    return query[len(prompt) :]


def rest_of(query: str, prompt: str) -> str:
    """The completion in a decoded query, in which whitespace and padding may differ.

    A prompt truncated at its start is matched by its end. ValueError if it is not found.
    """
    _require_texts(query, prompt)
    try:
        return conversation.rest_of(query, prompt)
    except SplitError as error:
        raise ValueError(_no_start(query, prompt)) from error


def _require_texts(query: Any, prompt: Any) -> None:
    for name, value in (("query", query), ("prompt", prompt)):
        if not isinstance(value, str):
            raise TypeError(f"a {name} must be a string, got a {type(value).__name__}")


def _no_start(query: str, prompt: str) -> str:
    return (
        "the query does not start with its prompt, so the completion cannot be separated from it: "
        f"query {query[:80]!r}, prompt {prompt[:80]!r}"
    )


def without_end_tokens(completion: str) -> str:
    """The completion without trailing end-of-turn and padding tokens.

    TypeError if it is not a string.
    """
    if not isinstance(completion, str):
        raise TypeError(f"a completion must be a string, got a {type(completion).__name__}")
    return without_ends(completion, ())


def read_each(trainer: str, read: Callable[..., T], **columns: Sequence[Any]) -> list[T]:
    """Call `read` for each sample, with the values of its columns.

    A ValueError or TypeError of `read` gets the trainer and the sample added to its message. Raises
    ValueError for columns of different lengths.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"{trainer}: the call has {counts}; the numbers must be equal")
    found = []
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        try:
            found.append(read(*values))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{trainer}: sample {index}: {error}") from error
    return found


def split_messages(messages: Sequence[Any]) -> tuple[Text, str]:
    """The messages before the last one, and the text of the last one."""
    plain = [_message(message) for message in _messages(messages, "a conversation")]
    if not plain:
        raise ValueError("a conversation without messages has no completion")
    return plain[:-1], plain[-1]["content"]


def _plain_sample(sample: Sample, template: ChatTemplate | None) -> Sample:
    prompt = sample.prompt if isinstance(sample.prompt, str) else _templated(sample.prompt)
    completion = sample.completion
    is_text = isinstance(completion, str) and sample.token_offsets is None
    if prompt is None:
        if is_text and (template or detect_answer(str(completion))) not in (None, PLAIN):
            return replace(sample, completion=_text(answer_of(str(completion), template)))
        return sample
    if not prompt.strip() and is_text and detect(str(completion)) is not None:
        texts = split_text(str(completion), template)
        return replace(sample, prompt=_text(texts.prompt), completion=_text(texts.completion))
    if template is None and detect(prompt) is None:
        require_plain(prompt)
        return sample
    if template is PLAIN:
        return sample
    if is_text:
        texts = pair_texts(prompt, str(completion), template)
        return replace(sample, prompt=_text(texts.prompt), completion=_text(texts.completion))
    turns, begun = split_prompt(prompt, template)
    sample = replace(sample, prompt=_text(turns))
    if not begun or not isinstance(completion, str) or sample.token_offsets is None:
        return sample
    # The start of the answer in the prompt belongs to the completion, without a policy token.
    offsets = [(start + len(begun), end + len(begun)) for start, end in sample.token_offsets]
    return replace(sample, completion=begun + completion, token_offsets=offsets)


def _templated(messages: Sequence[Mapping[str, object]]) -> str | None:
    """The text of messages whose contents are in a chat template already (NeMo RL); else None."""
    contents = [message.get("content") for message in messages]
    first = contents[0] if contents else None
    if not isinstance(first, str):
        return None
    if detect(first) is None and (len(contents) > 1 or unknown_markup(first) is None):
        return None
    return "".join(str(content) for content in contents)


def _text(text: str | tuple[Message, ...]) -> Text:
    if isinstance(text, str):
        return text
    return [{"role": turn.role, "content": turn.content} for turn in text]


def _messages(value: Any, what: str) -> list[Any]:
    """The messages of a list, a tuple or an array; TypeError for anything else."""
    is_many = isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, Mapping))
    if hasattr(value, "model_dump"):
        dumped = value.model_dump()
        is_many, value = isinstance(dumped, list), dumped
    if not is_many:
        raise TypeError(
            f"{what} must be a string or messages with a role and a content, got a "
            f"{type(value).__name__}"
        )
    return list(value)


def _is_message(value: Any) -> bool:
    if isinstance(value, Mapping):
        return True
    return hasattr(value, "content") and not isinstance(value, (list, tuple))


def _get(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


def role_of(message: Any) -> str:
    """The role of a message, from a mapping or an object; TypeError if it has none."""
    role = _get(message, "role")
    if role is None:
        raise TypeError(f"a message must have a role and a content, got a {type(message).__name__}")
    return str(getattr(role, "value", role))  # the value of an enum


def _message_content(message: Any) -> str:
    if not _is_message(message):
        raise TypeError(f"a message must have a role and a content, got a {type(message).__name__}")
    return _content(_get(message, "content"))


def _message(message: Any) -> dict[str, str]:
    """A message as a role and a text, from a mapping or an object with these attributes."""
    return {"role": role_of(message), "content": _content(_get(message, "content"))}


def _content(content: Any) -> str:
    """The text of a content: a string, None (a tool call), or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, (bytes, bytearray, Mapping)) or not isinstance(content, Iterable):
        raise TypeError(
            "a message's content must be a string or a list of parts, got a "
            f"{type(content).__name__}"
        )
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    text = part if isinstance(part, str) else _get(part, "text")
    return text if isinstance(text, str) else ""
