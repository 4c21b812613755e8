"""The shapes of a study's input: one JSON object a line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alarm_service.web.schemas import Id, MessageIn, SampleIn, Text

__all__ = ["GroupIn", "PreferenceIn", "SampleIn"]

Index = Annotated[int, Field(ge=0)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PreferenceIn(_In):
    """Which of two completions, by index, people preferred; null for neither."""

    first: Index
    second: Index
    preferred: Literal["first", "second"] | None


class GroupIn(_In):
    """A prompt with its completions, and what is known of them already.

    ``values`` holds further figures, one a completion, that are compared as aspects are.
    """

    prompt: Text | list[MessageIn]
    completions: list[Text | list[MessageIn]] = Field(min_length=1)
    fields: dict[Text, Text] = Field(default_factory=dict)
    id: Id = None
    values: dict[Text, list[float | None]] = Field(default_factory=dict)
    preferences: list[PreferenceIn] = Field(default_factory=list)

    @model_validator(mode="after")
    def _as_many_as_completions(self) -> GroupIn:
        count = len(self.completions)
        for name, values in self.values.items():
            if len(values) != count:
                raise ValueError(f"values.{name} has {len(values)} for {count} completions")
        for index, one in enumerate(self.preferences):
            if one.first == one.second or max(one.first, one.second) >= count:
                raise ValueError(
                    f"preferences[{index}] is of {one.first} and {one.second}, "
                    f"but wants two of {count} completions, counted from 0"
                )
        return self
