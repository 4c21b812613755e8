"""Scores samples with a model that needs no device."""

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import TypeAdapter

from alarm_models.errors import SampleError
from alarm_models.recipe.specs import ModelSpec
from alarm_models.reward_models.base import HostModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample, Score

_SPECS: TypeAdapter[Any] = TypeAdapter(ModelSpec)


def load_direct(**spec: Any) -> HostModel:
    """Load a model from a table of a recipe."""
    model = Loader(torch.device("cpu")).load(_SPECS.validate_python(spec), {})
    assert isinstance(model, HostModel)
    return model


def score_directly(model: HostModel, *samples: Sample) -> list[Score | SampleError]:
    """Score samples and close the model."""

    async def run() -> list[Score | SampleError]:
        try:
            return await model.score(samples)
        finally:
            await model.close()

    return asyncio.run(run())


def values(model: HostModel, *samples: Sample) -> list[float | str | None]:
    """Return the value of each sample, or its error message."""
    outcomes = score_directly(model, *samples)
    return [one.value if isinstance(one, Score) else one.message for one in outcomes]


def completion(text: str, **fields: str) -> Sample:
    """Create a sample with a completion and fields."""
    named: Mapping[str, str] = fields
    return Sample("?", text, fields=named)
