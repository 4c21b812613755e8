"""ms-swift's ORMs: `--external_plugins` and `--reward_funcs alarm` (4.x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.trainers.failure import scalars
from alarm_client.trainers.settings import Habits, read_settings
from alarm_client.trainers.source import RewardSource
from alarm_client.trainers.texts import completion_of, split_messages
from alarm_client.types import Sample

__all__ = ["HABITS", "AlarmORM", "orm", "register"]

# As TRL, on which ms-swift stands: no timeout but the collective watchdog, and None is skipped.
HABITS = Habits("ms_swift", timeout=480.0, on_failure="none", takes_none=True, aspects="admitted")


class AlarmORM:
    """An async outcome reward: ms-swift builds it with its arguments and awaits its calls.

    Each call may come on a new event loop. `part`: "reward", "holistic" or an aspect's name,
    as in `part_of`; ms-swift logs a class under its name.
    """

    part = "reward"
    settings: Mapping[str, Any] = {}

    def __init__(self, args: Any = None, **_: Any) -> None:
        given = dict(self.settings)
        if self.part != "reward":
            given.setdefault("aspects", "all")
        self.source = RewardSource(read_settings(HABITS, given))

    async def __call__(
        self, completions: Sequence[Any], messages: Sequence[Any] | None = None, **_: Any
    ) -> list[float | None]:
        """One float or None a completion; `messages` holds the conversations, answers included."""
        if messages is None:
            raise ValueError("ms_swift: the call has no messages, so the prompts are unknown")
        samples = [
            Sample(prompt=split_messages(row)[0], completion=completion_of(completion))
            for row, completion in zip(messages, completions, strict=True)
        ]
        rewards = await self.source.arewards(samples)
        return scalars(rewards, self.source.settings.on_failure, self.part)


def orm(name: str, part: str = "reward", **settings: Any) -> type[AlarmORM]:
    """An ORM class of its own, so that several recipes or aspects log under their own names."""
    return type(name, (AlarmORM,), {"part": part, "settings": settings})


def register(orms: dict[str, Any], aspects: Sequence[str] = ()) -> None:
    """Enter `alarm`, and `alarm_<aspect>` for each aspect, among ms-swift's `orms`."""
    orms["alarm"] = orm("alarm")
    for aspect in aspects:
        orms[f"alarm_{aspect}"] = orm(f"alarm_{aspect}", aspect)
