"""TRL's `reward_funcs`: GRPOTrainer, RLOOTrainer and the experimental AsyncGRPOTrainer."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import MethodType
from typing import Any

from alarm_client.trainers._columns import groups_of, rows_of, with_rows
from alarm_client.trainers._components import columns, means
from alarm_client.trainers._failures import scalars
from alarm_client.trainers._inputs import completion_of, prompt_of, read_each
from alarm_client.trainers._settings import Settings, TrainerDefaults, read_settings
from alarm_client.trainers._shared_calls import Consumer
from alarm_client.trainers._source import RewardSource, source_for
from alarm_client.types import Reward, Sample

__all__ = ["DEFAULTS", "AlarmReward", "async_reward"]

# TRL has no timeout of its own: a rank that waits longer than the collective watchdog (600 s by
# default) ends the run. Its datasets have no usual name for what is right; these are its own
# examples', and those of its rewards.
DEFAULTS = TrainerDefaults(
    "trl",
    timeout=480.0,
    on_failure="group_mean",
    takes_none=True,
    whole_groups="a per_device_train_batch_size of whole groups (num_generations)",
    references=("reference", "ground_truth", "solution", "answer", "label"),
)

# Before, a sample for which all functions return None counts as 0 in its group's mean.
_FIRST_TO_SKIP = (1, 6)

_FIRST_TO_AWAIT = (0, 27)


class AlarmReward:
    """A reward function for `reward_funcs`: picklable, and logged under `name`.

    Called with TRL's keywords, it returns one float or None a completion, and logs the parts of
    the reward: their means by `log_metric`, each sample's by `log_extra`. The names are the same
    in every call; `aspect_names` fixes them before the first answer. `part`: "reward", "holistic"
    or an aspect's name, for a column of its own under TRL's `reward_weights`: several of the same
    settings cost one scoring call a batch, where all are blocking or all are awaited. `settings`:
    see Settings.
    """

    def __init__(self, name: str = "alarm", part: str = "reward", **settings: Any) -> None:
        self.__name__ = name
        self.part = part
        given = read_settings(DEFAULTS, settings)
        _refuse_none_where_it_is_zero(given)
        self.source: RewardSource = source_for(given)
        self._consumer = Consumer()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "source": self.source.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In another process, too, rewards of the same settings share their calls.
        vars(self).update(state, source=source_for(state["source"]))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of TRL's local batch; of the columns those are sent that `fields` name."""
        samples = self._samples(prompts, completions, columns)
        rewards = self.source.rewards(samples, self._consumer)
        return self._finish(samples, rewards, log_metric, log_extra)

    async def awaited(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """As the call, awaited."""
        samples = self._samples(prompts, completions, columns)
        rewards = await self.source.arewards(samples, self._consumer)
        return self._finish(samples, rewards, log_metric, log_extra)

    def _samples(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Sample]:
        samples = _samples(prompts, completions)
        rows = rows_of(columns, len(samples))
        return with_rows(samples, rows, self.source.settings, prompts=prompts)

    def _finish(
        self,
        samples: list[Sample],
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
        policy = self.source.settings.on_failure
        return scalars(rewards, policy, self.part, groups_of(samples))


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
    if old := _older_than(_FIRST_TO_AWAIT):
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


def _refuse_none_where_it_is_zero(settings: Settings) -> None:
    old = _older_than(_FIRST_TO_SKIP)
    if settings.on_failure == "none" and old:
        raise ValueError(
            f"trl: on_failure 'none' is a reward of 0 in TRL {old} (1.6 is the first to skip "
            "the sample); set 'group_mean', 'raise' or a number"
        )


def _older_than(first: tuple[int, int]) -> str | None:
    """The TRL that is installed, where it is before `first`; else None."""
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    return installed if numbers < first else None


def _samples(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Sample]:
    def read(prompt: Any, completion: Any) -> Sample:
        return Sample(prompt=prompt_of(prompt), completion=completion_of(completion))

    return read_each(DEFAULTS.trainer, read, prompts=prompts, completions=completions)
