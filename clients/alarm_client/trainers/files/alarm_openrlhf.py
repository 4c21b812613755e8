"""For `--reward.remote_url`: OpenRLHF loads `reward_func` from this file."""

from alarm_client.trainers.openrlhf import reward_func

__all__ = ["reward_func"]
