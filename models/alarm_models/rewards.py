"""Alias of the names of `alarm_models.reward_models` that scripts load models by."""

from alarm_models.reward_models.base import HostModel as DirectModel
from alarm_models.reward_models.base import Model, Outcome, Prepared, RewardModel
from alarm_models.reward_models.registry import CheckpointState as Disk
from alarm_models.reward_models.registry import Loader

__all__ = ["DirectModel", "Disk", "Loader", "Model", "Outcome", "Prepared", "RewardModel"]
