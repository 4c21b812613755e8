"""One file a kind of model: prepare a sample, run the device, read the score."""

from alarm_models.rewards.base import AwaitedModel, Model, Outcome, Prepared, RewardModel
from alarm_models.rewards.loading import Loader

__all__ = ["AwaitedModel", "Loader", "Model", "Outcome", "Prepared", "RewardModel"]
