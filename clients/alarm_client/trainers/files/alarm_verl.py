"""For `reward.custom_reward_function.path` in versions of verl without `pkg://`."""

from alarm_client.trainers.verl import AlarmRewardManager, compute_score, compute_score_blocking

__all__ = ["AlarmRewardManager", "compute_score", "compute_score_blocking"]
