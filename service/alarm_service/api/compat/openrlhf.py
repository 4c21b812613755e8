"""OpenRLHF's reward format: decoded queries in; rewards, scores and logs out."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from alarm_models.combination.all_rules import sigmoid
from alarm_models.types import Sample
from alarm_service.api.compat.common import (
    ScalarRewards,
    TextOptions,
    TrainerBody,
    fields_of,
    split_each,
)
from alarm_service.api.compat.conversation import split_query
from alarm_service.api.compat.templates import ChatTemplate
from alarm_service.errors import Invalid
from alarm_service.schemas import ListOf, Text

__all__ = ["OpenRLHFIn", "OpenRLHFOptions", "OpenRLHFOut", "answer", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "query": [
        "<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"
        "Jane Austen wrote it.<|im_end|>"
    ],
    "prompts": ["<|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n"],
    "labels": ["Jane Austen"],
}


class OpenRLHFIn(TrainerBody):
    """Queries: prompt and response in one text, special tokens included.

    Versions before 0.5 send no prompts, before 0.8 no labels.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    query: ListOf[Text]
    prompts: ListOf[Text] | None = Field(default=None, description="one per query, or omitted")
    labels: list[Any] | None = Field(default=None, description="one per query: `reference`")


class OpenRLHFOptions(TextOptions):
    """How texts are split, and whether to return logs."""

    extra_logs: bool = Field(default=True, description="0 omits them, for 0.8.10 and 0.8.11")


class OpenRLHFOut(BaseModel):
    """One number per query in every list; `scores` are the sigmoids of the rewards."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]] | None = Field(
        default=None, description="the parts of each reward"
    )


def samples_of(body: OpenRLHFIn, template: ChatTemplate | None) -> list[Sample]:
    """Split queries into samples; raise `Invalid` where one cannot be split."""
    count = len(body.query)
    prompts = _one_per_query(body.prompts, count, "prompts", "")
    labels = _one_per_query(body.labels, count, "labels", None)
    texts = split_each(
        body.query, lambda index: split_query(body.query[index], prompts[index], template), "query"
    )
    return [
        Sample(one.prompt, one.completion, fields_of(label))
        for one, label in zip(texts, labels, strict=True)
    ]


def answer(numbers: ScalarRewards, options: OpenRLHFOptions) -> OpenRLHFOut:
    """Return the lists that OpenRLHF reads, with the same logs for any number of queries."""
    logs = {name: [one.parts[name] for one in numbers.numbers] for name in numbers.part_names}
    rewards = numbers.values
    return OpenRLHFOut(
        rewards=rewards,
        scores=[sigmoid(reward) for reward in rewards],
        extra_logs=logs if options.extra_logs else None,
    )


def _one_per_query(given: list[Any] | None, count: int, name: str, default: Any) -> list[Any]:
    if not given:
        return [default] * count
    if len(given) != count:
        raise Invalid(f"{name} has {len(given)} items, query has {count}: send one a query")
    return given
