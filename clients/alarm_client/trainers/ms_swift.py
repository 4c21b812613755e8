"""ms-swift's ORMs: `--external_plugins` and `--reward_funcs alarm` (4.x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from alarm_client.trainers._columns import groups_of, rows_of, with_rows
from alarm_client.trainers._failures import scalars
from alarm_client.trainers._inputs import completion_of, read_each, split_messages
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._shared_calls import Consumer
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "AlarmORM", "orm", "register"]

# As TRL, on which ms-swift stands: no timeout but the collective watchdog. A None counts as 0 in
# its advantages, so that it is not to be had here. `solution` is its own rewards' column.
DEFAULTS = TrainerDefaults(
    "ms_swift",
    timeout=480.0,
    on_failure="group_mean",
    whole_groups="a per_device_train_batch_size of whole groups (num_generations)",
    aspects="admitted",
    references=("reference", "solution", "ground_truth", "answer", "label"),
)


class AlarmORM:
    """An async outcome reward: ms-swift builds it with its arguments and awaits its calls.

    Each call may come on a new event loop. `part`: "reward", "holistic" or an aspect's name,
    as in `part_of`; ms-swift logs a class under its name. Several of the same settings cost one
    scoring call a batch.
    """

    part = "reward"
    settings: Mapping[str, Any] = {}

    def __init__(self, args: Any = None, **_: Any) -> None:
        given = dict(self.settings)
        if self.part != "reward":
            given.setdefault("aspects", "all")
        self.source = get_reward_source(DEFAULTS, given)
        self._consumer = Consumer()

    async def __call__(
        self, completions: Sequence[Any], messages: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """One float or None a completion; `messages` holds the conversations, answers included."""
        if messages is None:
            raise ValueError("ms_swift: the call has no messages, so the prompts are unknown")

        def read(turns: Any, completion: Any) -> Sample:
            return Sample(prompt=split_messages(turns)[0], completion=completion_of(completion))

        samples = read_each(DEFAULTS.trainer, read, messages=messages, completions=completions)
        settings = self.source.settings
        rows = rows_of(columns, len(samples))
        prompts = [_start(row, turns) for row, turns in zip(rows, messages, strict=True)]
        samples = with_rows(samples, rows, settings, prompts=prompts)
        rewards = await self.source.arewards(samples, self._consumer)
        return scalars(rewards, settings.on_failure, self.part, groups_of(samples))


def _start(row: Mapping[str, Any], messages: Sequence[Any]) -> list[Any]:
    """What all completions of a prompt have in common, however many turns they took since.

    ms-swift's `prompt_id` counts the prompts of one process and one step, so it is told with them.
    """
    turns = takewhile(lambda message: _role(message) != "assistant", messages)
    numbered = {"role": "prompt_id", "content": str(row.get("prompt_id") or "")}
    return [numbered, *turns]


def _role(message: Any) -> str:
    return str(message["role"] if isinstance(message, Mapping) else message.role)


def orm(name: str, part: str = "reward", **settings: Any) -> type[AlarmORM]:
    """An ORM class of its own, so that several recipes or aspects log under their own names."""
    return type(name, (AlarmORM,), {"part": part, "settings": settings})


def register(orms: dict[str, Any], aspects: Sequence[str] = ()) -> None:
    """Enter `alarm`, and `alarm_<aspect>` for each aspect, among ms-swift's `orms`."""
    # With aspects beside it the reward asks as they do, so that one call serves them all.
    orms["alarm"] = orm("alarm", aspects="all") if aspects else orm("alarm")
    for aspect in aspects:
        orms[f"alarm_{aspect}"] = orm(f"alarm_{aspect}", aspect)
