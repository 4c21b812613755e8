"""miles' `--custom-rm-path`: a fork of slime, with the same samples and calls.

It has no hook for advantages, so there are no token rewards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alarm_client.trainers import slime

__all__ = ["DEFAULTS", "custom_rm", "row_of_dataset"]

row_of_dataset = slime.row_of_dataset

DEFAULTS = replace(slime.DEFAULTS, trainer="miles")
HABITS = DEFAULTS  # former name, kept as an alias


async def custom_rm(args: Any, sample: Any, **_: Any) -> Any:
    """The reward of a sample, or of each sample of a list.

    With `--reward-key K` it is a dict: the reward under K, its parts under `alarm_...`.
    """
    return await slime.rewarded(args, sample, DEFAULTS)
