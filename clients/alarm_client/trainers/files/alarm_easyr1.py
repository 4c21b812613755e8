"""For `worker.reward.reward_function=FILE.py:compute_score`: EasyR1 loads it from this file."""

from alarm_client.trainers.easyr1 import REWARD_NAME, REWARD_TYPE, compute_score

__all__ = ["REWARD_NAME", "REWARD_TYPE", "compute_score"]
