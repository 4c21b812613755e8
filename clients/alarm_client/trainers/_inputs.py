"""Converts prompts and completions from the formats of trainers to those of Sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from alarm_client.trainers._messages import (
    THOUGHT_KEYS,
    completion_text,
    get,
    is_message,
    listed,
    message_of,
    role_of,
)
from alarm_client.types import Sample, Text

__all__ = [
    "END_TOKENS",
    "completion_of",
    "decoded_prompt",
    "plain_samples",
    "preceded",
    "prompt_of",
    "read_each",
    "rest_of",
    "role_of",
    "split_messages",
    "template_of",
    "text_of_last",
    "with_reply_starts",
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

    Tools that the template has written into a prompt are not sent a second time.

    ValueError if the template of a prompt is unknown, or the prompt does not fit the named one.
    """
    found = []
    for index, sample in enumerate(samples):
        try:
            found.append(_with_tools_once(sample, _plain_sample(sample, template)))
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
    """A prompt as a string, or as messages in the form of OpenAI's API (see `message_of`)."""
    if isinstance(value, str):
        return value
    if is_message(value):
        return [message_of(value)]
    return [message_of(message) for message in listed(value, "a prompt")]


def completion_of(value: Any) -> Text:
    """A completion: a string, a message, `{"message": ...}`, or several messages.

    One message with nothing but text is its text; anything else is sent as messages, such as tool
    calls with the tools' results and the answer. TypeError for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    inner = get(value, "message")
    if inner is not None:
        return completion_of(inner)
    if is_message(value):
        role = get(value, "role")
        return _text_or_messages([value if role is not None else _as_assistant(value)])
    messages = listed(value, "a completion")
    if len(messages) == 1 and isinstance(messages[0], str):
        return messages[0]
    return _text_or_messages(messages)


def text_of_last(value: Any) -> str:
    """The text of the last of several messages."""
    completion = completion_of(value)
    return completion if isinstance(completion, str) else completion_text(completion[-1:])


def _text_or_messages(values: Sequence[Any]) -> Text:
    messages = _from_first_reply([_completed(message) for message in values])
    if not messages:
        return ""
    content = messages[0]["content"]
    has_only_text = len(messages) == 1 and set(messages[0]) == {"role", "content"}
    return content if has_only_text and isinstance(content, str) else messages


def _from_first_reply(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without those before the first reply, which repeat the prompt."""
    roles = [message["role"] for message in messages]
    return messages[roles.index("assistant") :] if "assistant" in roles else messages[-1:]


def _completed(message: Any) -> dict[str, Any]:
    if not is_message(message):
        raise TypeError(f"a message must have a role and a content, got a {type(message).__name__}")
    return message_of(message)


def _as_assistant(message: Any) -> dict[str, Any]:
    """A reply without a role."""
    names = ("content", "tool_calls", "reasoning_content", "reasoning", "refusal", "audio")
    return {"role": "assistant", **{name: get(message, name) for name in names}}


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


def split_messages(messages: Sequence[Any]) -> tuple[Text, Text]:
    """The prompt and the completion of a conversation.

    The completion is the last message, with the calls and results of tools that led to it.
    """
    plain = [message_of(message) for message in listed(messages, "a conversation")]
    if not plain:
        raise ValueError("a conversation without messages has no completion")
    start = len(plain) - 1
    while start and plain[start - 1]["role"] in _OF_TOOLS:
        start -= 1
    while start < len(plain) - 1 and not plain[start].get("tool_calls"):
        start += 1  # replies before the first call are turns of the prompt
    return plain[:start], completion_of(plain[start:])


_OF_TOOLS = ("assistant", "tool", "function", "ipython")


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
    # The start of the answer in the prompt belongs to the completion, without a policy token.
    return preceded(sample, begun) if begun else sample


def _with_tools_once(given: Sample, plain: Sample) -> Sample:
    """The plain sample without its tools if the template wrote them into the given prompt."""
    if not plain.tools or not isinstance(given.prompt, str) or plain.prompt is given.prompt:
        return plain
    names = [_function_name(tool) for tool in plain.tools]
    has_them = all(name is not None and f'"{name}"' in given.prompt for name in names)
    return replace(plain, tools=None) if has_them else plain


def _function_name(tool: Mapping[str, object]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None


def preceded(sample: Sample, begun: str) -> Sample:
    """The sample with a text before its completion's; token offsets move along.

    A sample without tokens is returned as it is: the policy wrote nothing.
    """
    if sample.token_offsets is not None and not sample.token_offsets:
        return sample
    completion: Text
    if isinstance(sample.completion, str):
        completion = begun + sample.completion
    else:
        first, *others = sample.completion
        thought = first.get("reasoning_content")
        if isinstance(thought, str):
            begun = begun.lstrip().removeprefix("<think>").lstrip()
            first = {**first, "reasoning_content": begun + thought}
        else:
            content: Any = first.get("content") or ""
            parts = [{"type": "text", "text": begun}]
            is_text = isinstance(content, str)
            first = {**first, "content": begun + content if is_text else [*parts, *content]}
        completion = [first, *others]
    if sample.token_offsets is None:
        return replace(sample, completion=completion)
    offsets = [(start + len(begun), end + len(begun)) for start, end in sample.token_offsets]
    return replace(sample, completion=completion, token_offsets=offsets)


def with_reply_starts(sample: Sample, begun: str) -> Sample:
    """The sample with a text before each of the policy's replies that does not begin with it.

    Replies whose thought is separate have it already. Samples with token offsets are returned as
    they are: their modules read the start of the reply from the prompt.
    """
    if sample.token_offsets is not None:
        return sample
    if isinstance(sample.completion, str):
        return replace(sample, completion=_begun(sample.completion, begun))
    return replace(sample, completion=[_turn_begun(turn, begun) for turn in sample.completion])


def _turn_begun(turn: Mapping[str, Any], begun: str) -> dict[str, Any]:
    content = turn.get("content")
    has_thought = any(turn.get(name) for name in THOUGHT_KEYS)
    is_reply = turn.get("role") == "assistant" and not has_thought
    if not is_reply or not isinstance(content, str):
        return dict(turn)
    return {**turn, "content": _begun(content, begun)}


def _begun(text: str, begun: str) -> str:
    return text if not text or text.lstrip().startswith(begun.strip()) else begun + text


def _templated(messages: Sequence[Mapping[str, object]]) -> str | None:
    """The text of messages whose contents are in a chat template already (NeMo RL); else None."""
    contents = [message.get("content") for message in messages]
    first = contents[0] if contents else None
    if not isinstance(first, str) or not all(isinstance(one, str) for one in contents):
        return None
    if detect(first) is None and (len(contents) > 1 or unknown_markup(first) is None):
        return None
    return "".join(str(content) for content in contents)


def _text(text: str | tuple[Message, ...]) -> Text:
    if isinstance(text, str):
        return text
    return [{"role": turn.role, "content": turn.content} for turn in text]
