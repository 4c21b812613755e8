"""The shapes of what callers send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from alarm_models.hierarchy import Rule
from alarm_models.recipe_tables import Overrides
from alarm_models.sample import PackedSpans
from alarm_models.shaping import Shaping
from alarm_service.web.pieces import MAX_OFFSET

__all__ = [
    "MessageIn",
    "OverridesIn",
    "RewardRequest",
    "SampleIn",
    "ScoreRequest",
    "SpanIn",
]

_EXAMPLE_SAMPLE: dict[str, Any] = {
    "prompt": "question: Who wrote Emma? context: wikipage: Emma (novel) text: Emma is a novel "
    "written by English author Jane Austen, first published in December 1815.",
    "completion": "Emma was written by Jane Austen. It came out in 1815.",
    "token_offsets": [
        [0, 4], [5, 8], [9, 16], [17, 19], [20, 24], [25, 31], [31, 32], [33, 35], [36, 40],
        [41, 44], [45, 47], [48, 52], [52, 53], [53, 53],
    ],
    "id": "emma-1",
}  # fmt: skip


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _whole(text: str) -> str:
    """Refuse half of a surrogate pair: it can be neither tokenised nor echoed."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "lone_surrogate",
            "Input should be Unicode, but has a lone surrogate at {at}",
            {"at": error.start},
        ) from None
    return text


Text = Annotated[str, AfterValidator(_whole)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET)]
SpanIn = Annotated[list[Offset], Field(min_length=2, max_length=2, examples=[[0, 4]])]


def _unless_packed(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Take spans as they are that were checked as they were read."""
    return value if isinstance(value, PackedSpans) else validate(value)


#: The first fault is told and no other: there may be millions.
SpansIn = Annotated[list[SpanIn], Field(fail_fast=True), WrapValidator(_unless_packed)]
Id = Annotated[Text | int | None, Field(description="echoed")]


class MessageIn(_In):
    """One turn of a conversation."""

    role: Text
    content: Text


MessagesIn = Annotated[list[MessageIn], Field(fail_fast=True)]


class SampleIn(_In):
    """A prompt with one completion."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_SAMPLE]})

    prompt: Text | MessagesIn
    completion: Text | MessagesIn
    fields: dict[Text, Text] = Field(
        default_factory=dict, description="texts that the model's template may name"
    )
    token_offsets: SpansIn | None = Field(
        default=None,
        description="[start, end) in code points of the completion, one a policy token; "
        "special tokens are empty spans",
    )
    segments: dict[Literal["sentences", "subsentences", "steps", "errors"], SpansIn] = Field(
        default_factory=dict, description="spans that replace the server's own finding"
    )
    id: Id = None
    group: Text | int | None = Field(default=None, description="samples of one prompt share it")


class OverridesIn(Overrides):
    """What one request may change of a recipe."""

    model_config = ConfigDict(strict=True)

    rule: Rule | None = Field(default=None, strict=False)  # comes as a string
    shaping: Shaping | None = Field(default=None, strict=False)


class ScoreRequest(_In):
    """Samples for one model."""

    model: Text | None = Field(default=None, description="else the default recipe's holistic model")
    samples: list[SampleIn]


class RewardRequest(_In):
    """Samples for one recipe."""

    recipe: Text | None = Field(default=None, description="else the server's first recipe")
    samples: list[SampleIn]
    overrides: OverridesIn = Field(default_factory=OverridesIn)
    aspects: Literal["admitted", "all"] = Field(
        default="admitted", description='"all" computes every aspect, for logging'
    )
