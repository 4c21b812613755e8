"""One file a kind of model: prepare a sample, run the device, read the score."""

from alarm_models.rewards.base import Prepared, RewardModel
from alarm_models.rewards.loading import Loader

__all__ = ["Loader", "Prepared", "RewardModel"]
