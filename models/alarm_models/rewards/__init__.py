"""One file a kind of model: prepare a sample, run the device, read the score; or check its text."""

from alarm_models.rewards.base import Outcome, Prepared, RewardModel
from alarm_models.rewards.direct import DirectModel, Model
from alarm_models.rewards.loading import Disk, Loader

__all__ = ["DirectModel", "Disk", "Loader", "Model", "Outcome", "Prepared", "RewardModel"]
