"""TRL's `reward_funcs`: GRPOTrainer, RLOOTrainer and the experimental AsyncGRPOTrainer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from types import MethodType
from typing import Any

from alarm_client.trainers._columns import Row, finish_reason_at, groups_of, rows_of, with_rows
from alarm_client.trainers._components import columns, means
from alarm_client.trainers._failures import scalars
from alarm_client.trainers._inputs import completion_of, prompt_of, read_each
from alarm_client.trainers._messages import tools_of
from alarm_client.trainers._settings import (
    Settings,
    TrainerDefaults,
    read_settings,
    require_part,
)
from alarm_client.trainers._shared_calls import Consumer
from alarm_client.trainers._source import RewardSource, source_for
from alarm_client.types import Reward, Sample

__all__ = ["DEFAULTS", "AlarmReward", "async_reward"]

# TRL has no timeout, but a rank that waits longer than the collective watchdog (600 s by default)
# ends the run. Its datasets have no standard reference column; these are the names in its examples
# and rewards.
DEFAULTS = TrainerDefaults(
    "trl",
    timeout=480.0,
    on_failure="group_mean",
    takes_none=True,
    whole_groups="a per_device_train_batch_size of whole groups (num_generations)",
    references=("reference", "ground_truth", "solution", "answer", "label"),
)
HABITS = DEFAULTS  # former name, kept as an alias

# Earlier versions count a sample for which all functions return None as 0 in the group mean.
_FIRST_TO_SKIP = (1, 6)

_FIRST_TO_AWAIT = (0, 27)

# Methods of an environment that are not tools.
_HOOKS = ("reset", "get_reward")


class AlarmReward:
    """A reward function for `reward_funcs`: picklable, and logged under `name`.

    Called with TRL's keywords, it returns one float or None per completion, and logs the reward
    components: means by `log_metric`, values per sample by `log_extra`. The names are the same in
    every call; `aspect_names` fixes them before the first response. `part`: "reward", "holistic" or
    an aspect's name, to weight it separately under TRL's `reward_weights`; rewards with equal
    settings share one scoring call per batch if all are blocking or all are async. `settings`: see
    Settings.
    """

    def __init__(self, name: str = "alarm", part: str = "reward", **settings: Any) -> None:
        self.__name__ = name
        self.part = part
        given = read_settings(DEFAULTS, settings)
        require_part(given, part)
        _refuse_none_where_it_is_zero(given)
        self.source: RewardSource = source_for(given)
        self._consumer = Consumer()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "source": self.source.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Rewards with equal settings share calls in the new process too.
        vars(self).update(state, source=source_for(state["source"]))

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of TRL's local batch; columns named in `fields` are sent."""
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
        """As `__call__`, for asyncio."""
        samples = self._samples(prompts, completions, columns)
        rewards = await self.source.arewards(samples, self._consumer)
        return self._finish(samples, rewards, log_metric, log_extra)

    def _samples(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> list[Sample]:
        settings = self.source.settings
        samples = _samples(prompts, completions)
        rows = rows_of(columns, len(samples))
        samples = [
            replace(sample, finish_reason=finish_reason_at(len(row["completion_ids"]), settings))
            if "completion_ids" in row
            else sample
            for sample, row in zip(samples, rows, strict=True)
        ]
        step = getattr(columns.get("trainer_state"), "global_step", None)
        samples = with_rows(samples, rows, settings, prompts=prompts, step=step)
        return [_with_environment(*pair) for pair in zip(samples, rows, strict=True)]

    def _finish(
        self,
        samples: list[Sample],
        rewards: list[Reward],
        log_metric: Callable[[str, float], None] | None,
        log_extra: Callable[[str, list[Any]], None] | None,
    ) -> list[float | None]:
        parts = columns(rewards, self.source.aspect_names.update(rewards))
        for part, mean in means(parts).items():
            if log_metric is not None:
                log_metric(f"{self.__name__}/{part}", mean)
            if log_extra is not None:
                log_extra(f"{self.__name__}/{part}", parts[part])
        policy = self.source.settings.on_failure
        return scalars(rewards, policy, self.part, groups_of(samples))


class _Awaited:
    """Wraps an AlarmReward; its async call is an attribute with the reward's name."""

    def __init__(self, reward: AlarmReward) -> None:
        self._alarm_reward = reward

    def __getattr__(self, name: str) -> Any:
        # A bound method pickles as an attribute of its object, so this name must resolve to it.
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
    """As AlarmReward, awaited concurrently with other async reward functions.

    It is a bound coroutine method, so that every version of TRL that awaits rewards detects that it
    is async, and its name. ValueError if the installed TRL is older than 0.27, which awaits none.
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
    # `alarm_client.trainers.trl.reward`, for trainers' command lines: created on access, so that
    # importing reads no environment.
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
    """The installed version of TRL if it is older than `first`, else None."""
    try:
        installed = version("trl")
    except PackageNotFoundError:
        return None
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:2])
    return installed if numbers < first else None


def _with_environment(sample: Sample, row: Row) -> Sample:
    """The sample with the tools of its TRL environment, which are methods."""
    environment = row.get("environments")
    if environment is None:
        return sample
    return replace(sample, tools=[*(sample.tools or ()), *_methods(environment.__class__)] or None)


@lru_cache(maxsize=64)
def _methods(environment: Any) -> tuple[Any, ...]:
    """The schemas of the methods that TRL offers to the policy."""
    own = inspect.getmembers(environment, inspect.isfunction)
    offered = [method for name, method in own if name not in _HOOKS and not name.startswith("_")]
    return tuple(tools_of(offered) or ())


def _samples(prompts: Sequence[Any], completions: Sequence[Any]) -> list[Sample]:
    def read(prompt: Any, completion: Any) -> Sample:
        return Sample(prompt=prompt_of(prompt), completion=completion_of(completion))

    return read_each(DEFAULTS.trainer, read, prompts=prompts, completions=completions)
