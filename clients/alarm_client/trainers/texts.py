"""The shapes in which trainers hand over prompts and completions, as what a Sample takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.types import Text

# Ends of a turn that policies write; a trainer that decodes with special tokens leaves them there.
END_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
    "<pad>",
    "<|pad|>",
)


def prompt_of(value: Any) -> Text:
    """A prompt: a text, or messages of a role and a text each."""
    return value if isinstance(value, str) else [_message(message) for message in value]


def completion_of(value: Any) -> str:
    """A completion's text: of a text, a message, `{"message": ...}` or messages, the last one."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if "message" in value:
            return completion_of(value["message"])
        return _content(value.get("content"))
    messages = list(value)
    return completion_of(messages[-1]) if messages else ""


def split_query(query: str, prompt: str) -> str:
    """What follows the prompt in a query that holds both; ValueError where it does not start so."""
    if not query.startswith(prompt):
        raise ValueError(
            "the query does not start with its prompt, so the completion cannot be told from it: "
            f"query {query[:80]!r}, prompt {prompt[:80]!r}"
        )
    return query[len(prompt) :]


def without_end_tokens(completion: str) -> str:
    """The completion without the end-of-turn and padding tokens that a policy's decoder left."""
    text = completion
    while True:
        shorter = text.rstrip("\n") if text.rstrip("\n").endswith(END_TOKENS) else text
        for token in END_TOKENS:
            shorter = shorter.removesuffix(token)
        if shorter == text:
            return text
        text = shorter


def split_messages(messages: Sequence[Any]) -> tuple[Text, str]:
    """The messages before the last one, and the text of the last one."""
    plain = [_message(message) for message in messages]
    if not plain:
        raise ValueError("a conversation without messages has no completion")
    return plain[:-1], plain[-1]["content"]


def _message(message: Any) -> dict[str, str]:
    """A message as a role and a text, from a mapping or an object with these attributes."""
    if isinstance(message, Mapping):
        return {"role": str(message["role"]), "content": _content(message.get("content"))}
    return {"role": str(message.role), "content": _content(message.content)}


def _content(content: Any) -> str:
    """The text of a content: a text, nothing (a tool call), or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else getattr(part, "text", part)
    return text if isinstance(text, str) else ""
