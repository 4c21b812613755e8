"""ms-swift's ORMs: `--external_plugins` and `--reward_funcs alarm` (4.x)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from alarm_client.trainers._columns import groups_of, rows_of, with_rows
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import completion_of, read_each, split_messages
from alarm_client.trainers._settings import TrainerDefaults, require_part
from alarm_client.trainers._shared_calls import Consumer
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "AlarmORM", "orm", "register"]

# As in TRL, on which ms-swift builds, the only timeout is the collective watchdog. A None counts as
# 0 in its advantages, so it is not offered. `solution` is the column of its own rewards.
DEFAULTS = TrainerDefaults(
    "ms_swift",
    timeout=480.0,
    on_failure="group_mean",
    whole_groups="a per_device_train_batch_size of whole groups (num_generations)",
    aspects="admitted",
    references=("reference", "solution", "ground_truth", "answer", "label"),
)
HABITS = DEFAULTS  # former name, kept as an alias


class AlarmORM:
    """An async outcome reward, which ms-swift constructs with its arguments and awaits.

    Each call may run on a new event loop. `part`: "reward", "holistic" or an aspect's name,
    as in `part_of`; ms-swift logs a class under its name. Instances with equal settings share one
    scoring call per batch.
    """

    part = "reward"
    settings: Mapping[str, Any] = {}

    def __init__(self, args: Any = None, **_: Any) -> None:
        given = dict(self.settings)
        if self.part != "reward":
            given.setdefault("aspects", "all")
        self.source = get_reward_source(DEFAULTS, given)
        require_part(self.source.settings, self.part)
        self._consumer = Consumer()

    async def __call__(
        self, completions: Sequence[Any], messages: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        """One float a completion; `messages` contains the conversations with answers."""
        if messages is None:
            raise ValueError("ms_swift: the call has no messages, so the prompts are unknown")

        def read(turns: Any, completion: Any) -> Sample:
            prompt, replies = split_messages(turns)
            is_text = isinstance(replies, str)
            return Sample(
                prompt=prompt, completion=completion_of(completion) if is_text else replies
            )

        samples = read_each(DEFAULTS.trainer, read, messages=messages, completions=completions)
        settings = self.source.settings
        rows = rows_of(columns, len(samples))
        samples = [
            replace(sample, finish_reason=_finish_reason(row))
            for sample, row in zip(samples, rows, strict=True)
        ]
        prompts = [_start(row, turns) for row, turns in zip(rows, messages, strict=True)]
        samples = with_rows(samples, rows, settings, prompts=prompts)
        rewards = await self.source.arewards(samples, self._consumer)
        return numbers(rewards, settings.on_failure, groups_of(samples), self.part)


def _start(row: Mapping[str, Any], messages: Sequence[Any]) -> list[Any]:
    """The prompt that all completions of a group share, whatever turns were added since.

    ms-swift's `prompt_id` is unique only in one process and step, so it is combined with messages.
    """
    turns = takewhile(lambda message: _role(message) != "assistant", messages)
    numbered = {"role": "prompt_id", "content": str(row.get("prompt_id") or "")}
    return [numbered, *turns]


def _finish_reason(row: Mapping[str, Any]) -> str | None:
    """ms-swift's `finish_reason`; "length" if it says that the completion is truncated."""
    reason = row.get("finish_reason")
    if isinstance(reason, str):
        return reason
    return "length" if row.get("is_truncated") else None


def _role(message: Any) -> str:
    return str(message["role"] if isinstance(message, Mapping) else message.role)


def orm(name: str, part: str = "reward", **settings: Any) -> type[AlarmORM]:
    """Create an ORM class, so that several recipes or aspects are logged under their own names."""
    return type(name, (AlarmORM,), {"part": part, "settings": settings})


def register(orms: dict[str, Any], aspects: Sequence[str] = ()) -> None:
    """Add `alarm`, and `alarm_<aspect>` for each aspect, to ms-swift's `orms`."""
    # With aspects, the reward has the same settings as they, so that all share one call.
    orms["alarm"] = orm("alarm", aspects="all") if aspects else orm("alarm")
    for aspect in aspects:
        orms[f"alarm_{aspect}"] = orm(f"alarm_{aspect}", aspect)
