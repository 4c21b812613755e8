"""torchforge: one of the `reward_functions` of its GRPO app's RewardActor."""

from __future__ import annotations

from typing import Any

from alarm_client.trainers._columns import with_rows
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "AlarmReward"]

# torchforge waits for a reward without a time limit.
DEFAULTS = TrainerDefaults("torchforge", timeout=600.0, aspects="admitted", references=("target",))
HABITS = DEFAULTS  # former name, kept as an alias


class AlarmReward:
    """`RewardActor(reward_functions=[AlarmReward()])`: picklable, logged as `alarm`.

    torchforge averages over its reward functions. `settings`: see Settings.
    """

    def __init__(self, name: str = "alarm", **settings: Any) -> None:
        self.__name__ = name
        self.source = RewardSource(read_settings(DEFAULTS, settings))

    def __call__(self, prompt: str, response: str, target: Any = None) -> float:
        """The reward of one response; `target` is the field `reference`."""
        sample = Sample(prompt=prompt_of(prompt), completion=without_end_tokens(response))
        samples = with_rows([sample], [{"target": target}], self.source.settings)
        (value,) = numbers(self.source.rewards(samples), self.source.settings.on_failure)
        return value
