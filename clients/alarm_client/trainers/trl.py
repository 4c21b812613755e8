"""TRL's `reward_funcs`: GRPOTrainer, RLOOTrainer and the experimental AsyncGRPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from types import MethodType
from typing import Any

from alarm_client.trainers.components import columns, means
from alarm_client.trainers.failure import scalars
from alarm_client.trainers.settings import Habits, read_settings
from alarm_client.trainers.source import RewardSource
from alarm_client.trainers.texts import completion_of, prompt_of
from alarm_client.trainers.versions import older_than
from alarm_client.types import Reward, Sample

__all__ = ["HABITS", "AlarmReward", "async_reward"]

# TRL has no timeout of its own: a rank that waits longer than the collective watchdog (600 s by
# default) ends the run. A None is skipped by TRL.
HABITS = Habits("trl", timeout=480.0, on_failure="none", takes_none=True)

_FIRST_TO_AWAIT = (0, 27)


class AlarmReward:
    """A reward function for `reward_funcs`: picklable, and logged under `name`.

    Called with TRL's keywords, it returns one float or None a completion, and logs the parts of
    the reward: their means by `log_metric`, each sample's by `log_extra`. The names are the same
    in every call; `aspect_names` fixes them before the first answer. `part`: "reward", "holistic"
    or an aspect's name, for a column of its own under TRL's `reward_weights`. `settings`: see
    Settings.
    """

    def __init__(self, name: str = "alarm", part: str = "reward", **settings: Any) -> None:
        self.__name__ = name
        self.part = part
        self.source = RewardSource(read_settings(HABITS, settings))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """The rewards of TRL's local batch; other columns and states are left alone."""
        rewards = self.source.rewards(_samples(prompts, completions))
        return self._finish(rewards, log_metric, log_extra)

    async def awaited(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        """As the call, awaited."""
        rewards = await self.source.arewards(_samples(prompts, completions))
        return self._finish(rewards, log_metric, log_extra)

    def _finish(
        self,
        rewards: list[Reward],
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
    ) -> list[float | None]:
        parts = columns(rewards, self.source.aspect_names.seen(rewards))
        for part, mean in means(parts).items():
            if log_metric is not None:
                log_metric(f"{self.__name__}/{part}", mean)
            if log_extra is not None:
                log_extra(f"{self.__name__}/{part}", parts[part])
        return scalars(rewards, self.source.settings.on_failure, self.part)


class _Awaited:
    """Holds an AlarmReward and offers its awaited call under the reward's own name."""

    def __init__(self, reward: AlarmReward) -> None:
        self._alarm_reward = reward

    def __getattr__(self, name: str) -> Any:
        # A bound method pickles as this attribute of its object, so the name must lead back here.
        reward = vars(self).get("_alarm_reward")
        if reward is None or name != reward.__name__:
            raise AttributeError(name)

        async def awaited(self: _Awaited, *args: Any, **kwargs: Any) -> list[float | None]:
            return await self._alarm_reward.awaited(*args, **kwargs)

        awaited.__name__ = name
        return MethodType(awaited, self)


def async_reward(
    name: str = "alarm", part: str = "reward", **settings: Any
) -> Callable[..., Coroutine[Any, Any, list[float | None]]]:
    """As AlarmReward, awaited beside the other async reward functions.

    It is a bound coroutine method: every version of TRL that awaits rewards sees that it is async,
    and its name. ValueError where the installed TRL is older than 0.27, which awaits none.
    """
    if old := older_than("trl", _FIRST_TO_AWAIT):
        raise ValueError(
            f"trl: TRL {old} does not await reward functions (0.27 is the first that does); use "
            "AlarmReward(), which blocks, in place of async_reward()"
        )
    method: Callable[..., Coroutine[Any, Any, list[float | None]]] = getattr(
        _Awaited(AlarmReward(name, part, **settings)), name
    )
    return method


def __getattr__(name: str) -> AlarmReward:
    # `alarm_client.trainers.trl.reward`, for trainers' command lines: made when it is asked for,
    # so that importing reads no environment.
    if name == "reward":
        return AlarmReward()
    raise AttributeError(f"module {__name__} has no {name}")


def _samples(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Sample]:
    return [
        Sample(prompt=prompt_of(prompt), completion=completion_of(completion))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
