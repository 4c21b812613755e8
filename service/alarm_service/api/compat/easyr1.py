"""EasyR1's reward format: responses and the answer column in, `overall` and its parts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field, RootModel
from pydantic.json_schema import SkipJsonSchema

from alarm_models.types import Sample
from alarm_service.api.compat.common import (
    ChatMessageIn,
    ScalarReward,
    TextOptions,
    TrainerBody,
    messages_of,
    pair_messages,
    split_each,
    text_fields,
)
from alarm_service.api.compat.conversation import (
    SplitError,
    Texts,
    answer_of,
    pair_texts,
)
from alarm_service.api.compat.templates import ChatTemplate
from alarm_service.json_pieces import read_json
from alarm_service.schemas import ListOf, Text

__all__ = ["EasyR1Batch", "EasyR1Options", "EasyR1Out", "answer", "samples_of"]

_Prompt = str | ListOf[ChatMessageIn]

#: Columns used as the field `reference` if no column has that name.
_ANSWERS = ("ground_truth", "answer", "solution", "label")

_EXAMPLE: dict[str, Any] = {
    "response": "Jane Austen wrote it.",
    "response_length": 6,
    "ground_truth": {"prompt": "Who wrote Emma?", "reference": "Jane Austen"},
}


class GroundTruthIn(TrainerBody):
    """The prompt, and beside it what the recipe needs: each text or number is a field."""

    model_config = ConfigDict(extra="allow")

    prompt: Text | ListOf[ChatMessageIn]


class EasyR1In(TrainerBody):
    """One reward input of EasyR1, which passes no prompt: `ground_truth` must contain it."""

    response: Text | ListOf[ChatMessageIn]
    ground_truth: Text | GroundTruthIn = Field(
        description="the prompt and what else the recipe needs, as an object or as its JSON; "
        "`?ground_truth=` says what a plain text is"
    )


class EasyR1Batch(RootModel[ListOf[EasyR1In]]):
    """A batch of reward inputs."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"examples": [[_EXAMPLE]]})


class EasyR1Options(TextOptions):
    """How texts are split, and what a ground truth of plain text is."""

    ground_truth: Literal["prompt", "reference"] | SkipJsonSchema[None] = Field(
        default=None, description="what a ground truth is that is a plain text"
    )


#: `overall` and its parts.
EasyR1Out = dict[str, float]


def samples_of(
    batch: EasyR1Batch, template: ChatTemplate | None, options: EasyR1Options
) -> list[Sample]:
    """Take the samples; those of one prompt are a group. Raises `Invalid` where one has none."""
    samples: list[Sample] = []

    def read(index: int) -> Texts:
        prompt, fields = _read(batch.root[index].ground_truth, options.ground_truth)
        texts = _texts(prompt, batch.root[index].response, template)
        samples.append(Sample(texts.prompt, texts.completion, fields))
        return texts

    split_each(batch.root, read, "reward_inputs")
    groups = {sample.prompt: str(index) for index, sample in enumerate(samples)}
    return [replace(sample, group=groups[sample.prompt]) for sample in samples]


def answer(numbers: Sequence[ScalarReward]) -> list[EasyR1Out]:
    """Answer as EasyR1's batch reward functions do; all but `overall` is logged."""
    return [dict(number.parts) | {"overall": number.value} for number in numbers]


def _read(truth: str | GroundTruthIn, meaning: str | None) -> tuple[_Prompt, dict[str, str]]:
    """Return the prompt and the fields of a ground truth."""
    if isinstance(truth, str):
        if meaning == "prompt":
            return truth, {}
        if meaning == "reference":
            return "", {"reference": truth}
        truth = _parsed(truth)
    fields = text_fields(truth.model_extra or {})
    usual = next((fields[name] for name in _ANSWERS if name in fields), None)
    return truth.prompt, fields if usual is None else {"reference": usual} | fields


def _parsed(truth: str) -> GroundTruthIn:
    try:
        return GroundTruthIn.model_validate(read_json(truth.encode(), packs_spans=False))
    except (ValueError, RecursionError):
        raise SplitError(
            f"EasyR1 passes no prompt, and the ground truth {truth[:80]!r} has none: put "
            '{"prompt": ..., "reference": ...} in the answer column, or say what a plain text is: '
            "`?ground_truth=prompt` or `?ground_truth=reference`"
        ) from None


def _texts(
    prompt: _Prompt, response: str | list[ChatMessageIn], template: ChatTemplate | None
) -> Texts:
    if not isinstance(response, str):
        given = prompt if isinstance(prompt, str) else messages_of(prompt)
        return pair_messages(given, messages_of(response), template)
    if isinstance(prompt, str):
        return pair_texts(prompt, response, template)
    return Texts(messages_of(prompt), answer_of(response, template))
