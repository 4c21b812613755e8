"""The plain way to score samples with a model: prepare, one forward pass, read."""

from collections.abc import Sequence

import torch

from alarm_models.features import Features
from alarm_models.rewards import DirectModel, Loader, RewardModel
from alarm_models.sample import Sample, Score
from alarm_models.specs import ModelSpec


def load(spec: ModelSpec) -> RewardModel:
    """Load a model on the CPU."""
    model = Loader(torch.device("cpu")).load(spec, {})
    assert not isinstance(model, DirectModel)
    return model


def score(model: RewardModel, samples: Sequence[Sample]) -> list[Score]:
    """Score samples in one batch; a sample's error is raised."""
    prepared = model.prepare(samples)
    for one in prepared:
        if isinstance(one, Exception):
            raise one
    features = [one for one in prepared if isinstance(one, Features)]
    outputs = iter(model.forward(features)) if features else iter(())
    return [
        model.read(one, next(outputs)) if isinstance(one, Features) else one
        for one in prepared
        if not isinstance(one, Exception)
    ]
