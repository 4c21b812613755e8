"""Scores samples with a model directly: prepare, one forward pass, read."""

from collections.abc import Sequence

import torch

from alarm_models.modeling.inputs import ModelInput
from alarm_models.recipe.specs import ModelSpec
from alarm_models.reward_models.base import HostModel, RewardModel
from alarm_models.reward_models.registry import Loader
from alarm_models.types import Sample, Score


def load(spec: ModelSpec) -> RewardModel:
    """Load a model on the CPU."""
    model = Loader(torch.device("cpu")).load(spec, {})
    assert not isinstance(model, HostModel)
    return model


def score(model: RewardModel, samples: Sequence[Sample]) -> list[Score]:
    """Score samples in one batch; raise the error of a sample."""
    prepared = model.prepare(samples)
    for one in prepared:
        if isinstance(one, Exception):
            raise one
    features = [one for one in prepared if isinstance(one, ModelInput)]
    outputs = iter(model.forward(features)) if features else iter(())
    return [
        model.read(one, next(outputs)) if isinstance(one, ModelInput) else one
        for one in prepared
        if not isinstance(one, Exception)
    ]
