"""miles' `--custom-rm-path`: its samples and calls are slime's, of which it is a fork.

It has no hook for advantages, so there are no token rewards.
"""

from alarm_client.trainers.slime import HABITS, custom_rm

__all__ = ["HABITS", "custom_rm"]
