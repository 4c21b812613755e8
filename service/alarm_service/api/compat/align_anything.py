"""align-anything: prompts and responses without special tokens in, rewards out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from alarm_models.types import Sample
from alarm_service.api.compat.common import TrainerBody, fields_of, split_each
from alarm_service.api.compat.conversation import (
    SplitError,
    Texts,
    pair_texts,
    require_plain,
    split_text,
)
from alarm_service.api.compat.templates import PLAIN, ChatTemplate, detect
from alarm_service.errors import Invalid
from alarm_service.schemas import ListOf, Text

__all__ = ["AlignAnythingIn", "AlignAnythingOut", "samples_of"]

_EXAMPLE: dict[str, Any] = {
    "prompts": ["Who wrote Emma?"],
    "responses": ["Jane Austen wrote it."],
}


class AlignAnythingIn(TrainerBody):
    """One prompt per response."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    prompts: ListOf[Text]
    responses: ListOf[Text]
    golden_responses: ListOf[Text] | None = Field(
        default=None, description="one per response, or omitted: the field `reference`"
    )


class AlignAnythingOut(BaseModel):
    """One reward per response."""

    rewards: list[float]


def samples_of(body: AlignAnythingIn, template: ChatTemplate | None) -> list[Sample]:
    """Pair prompts with responses; raise `Invalid` if the numbers differ.

    If the trainer cannot find the prompt, it sends an empty one and the whole conversation as the
    response: without a template to split it by, that is an error.
    """
    count = len(body.responses)
    references: Sequence[str | None] = body.golden_responses or [None] * count
    for name, given in (("prompts", body.prompts), ("golden_responses", references)):
        if len(given) != count:
            raise Invalid(f"{name} has {len(given)} items, responses has {count}: send one each")
    texts = split_each(
        body.responses,
        lambda index: _texts(body.prompts[index], body.responses[index], template),
        "responses",
    )
    return [
        Sample(one.prompt, one.completion, fields_of(reference))
        for one, reference in zip(texts, references, strict=True)
    ]


def _texts(prompt: str, response: str, template: ChatTemplate | None) -> Texts:
    if prompt:
        if template is not PLAIN and detect(prompt) is not None:
            # It kept its template's tokens, and is split as on the other routes.
            return pair_texts(prompt, response, template)
        if template is None:
            require_plain(prompt)
        return Texts(prompt, response)
    if template is None or template is PLAIN:
        raise SplitError(
            "its prompt is empty: align-anything sends that if it finds no `user` and "
            "`assistant` in the decoded text; give the texts before turns: "
            "`?user=...&assistant=...`"
        )
    return split_text(response, template)
