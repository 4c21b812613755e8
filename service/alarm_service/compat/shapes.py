"""The shapes that several trainers share: chat messages, how texts are split, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from alarm_models.sample import Message
from alarm_service.compat.templates import MAX_ENDS, MAX_MARKER, TEMPLATES, ChatTemplate, marked
from alarm_service.errors import Invalid
from alarm_service.web.schemas import Text

__all__ = ["ChatMessageIn", "TextOptions", "TrainerBody", "fields_of", "messages_of", "text_fields"]


class TrainerBody(BaseModel):
    """What a trainer sends; fields that it sends besides are not read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


class TextPartIn(TrainerBody):
    """A part of a message; only text can be rewarded."""

    type: Literal["text"]
    text: Text


class ChatMessageIn(TrainerBody):
    """One turn of a conversation, as OpenAI's clients write it."""

    role: Text
    content: Text | list[TextPartIn] | None = None


class TextOptions(BaseModel):
    """How prompt and completion are told apart; without options by the template's own tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | SkipJsonSchema[None] = Field(
        default=None,
        description=f"the policy's chat template: {', '.join(TEMPLATES)}; `plain` for none. "
        "Else the one that the text begins in",
        json_schema_extra={"enum": list(TEMPLATES)},
    )
    user: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before a user's turn, such as `Human:`"
    )
    assistant: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before the assistant's turn, such as `Assistant:`"
    )
    system: Text | SkipJsonSchema[None] = Field(
        default=None, description="the text before the system's turn"
    )
    end: list[Text] = Field(
        default=[], max_length=MAX_ENDS, description="texts that end a turn; may be given again"
    )

    @field_validator("template")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is None or name in TEMPLATES:
            return name
        raise PydanticCustomError("template", "Input should be one of " + ", ".join(TEMPLATES))

    @field_validator("user", "assistant", "system", "end")
    @classmethod
    def _is_short(cls, given: str | list[str] | None) -> str | list[str] | None:
        # Each turn of a text is compared with each of these: so they are short, and few.
        for marker in given if isinstance(given, list) else [given or ""]:
            if len(marker) > MAX_MARKER:
                raise PydanticCustomError(
                    "marker", f"String should have at most {MAX_MARKER} characters"
                )
        return given

    @model_validator(mode="after")
    def _is_one_template(self) -> TextOptions:
        has_markers = any((self.user, self.assistant, self.system, self.end))
        if self.template is not None and has_markers:
            raise PydanticCustomError(
                "template", "template already says what user, assistant, system and end would"
            )
        if has_markers and not self.assistant:
            raise PydanticCustomError(
                "template", "assistant is missing: the text before the assistant's turn"
            )
        return self

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template that was named or described."""
        if self.template is not None:
            return TEMPLATES[self.template]
        if not self.assistant:
            return None
        return marked(user=self.user, assistant=self.assistant, system=self.system, ends=self.end)


def messages_of(messages: list[ChatMessageIn]) -> tuple[Message, ...]:
    """Take messages off the wire; the parts of one are put together."""
    return tuple(Message(message.role, _content(message)) for message in messages)


def fields_of(label: Any) -> dict[str, str]:
    """Return a label as the field `reference`, where it is a text or a number."""
    return text_fields({"reference": label})


def text_fields(columns: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of a trainer's row that are a text or a number, as texts by name.

    Raises `Invalid` where one is no Unicode, as the `Text` of other fields does.
    """
    fields = {name: str(value) for name, value in columns.items() if _is_text_or_number(value)}
    for name, text in fields.items():
        try:
            f"{name}{text}".encode()
        except UnicodeEncodeError:
            raise Invalid(
                f"{ascii(name)[:80]} should be Unicode, but has a lone surrogate"
            ) from None
    return fields


def _is_text_or_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and bool(value))


def _content(message: ChatMessageIn) -> str:
    if isinstance(message.content, list):
        return "".join(part.text for part in message.content)
    return message.content or ""
