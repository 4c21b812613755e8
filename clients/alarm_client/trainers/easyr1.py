"""EasyR1's `worker.reward.reward_function=FILE.py:compute_score`, a batch reward function."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alarm_client.trainers._columns import finish_reason_at, groups_of, with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, read_each, without_end_tokens
from alarm_client.trainers._settings import Settings, TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = [
    "DEFAULTS",
    "REWARD_NAME",
    "REWARD_TYPE",
    "compute_score",
    "row_of_dataset",
    "usual_fields",
]

# One Ray actor scores the whole batch while the trainer waits, without a time limit.
DEFAULTS = TrainerDefaults(
    "easyr1",
    timeout=600.0,
    whole_groups="its own batches",
    references=("reference", "ground_truth", "answer", "solution", "label"),
)
HABITS = DEFAULTS  # former name, kept as an alias

REWARD_NAME = "alarm"
REWARD_TYPE = "batch"


def compute_score(
    reward_inputs: Sequence[Mapping[str, Any]],
    ground_truth: str | None = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """`{"overall": reward, ...}` for each response, with its components for EasyR1's logs.

    EasyR1 passes no prompt, so the answer column must contain it: an object, or its JSON, with
    `prompt` (a string or messages) and further strings or numbers, which are sent as fields of the
    same name unless the setting `fields` names columns: `{"prompt": "Who wrote Emma?", "reference":
    "Jane Austen"}`. `ground_truth` is the meaning of a column of plain strings: "prompt", or
    "reference" for recipes that read no prompt.
    `reward_function_kwargs` may contain it and any of Settings.
    """
    if ground_truth not in (None, "prompt", "reference"):
        raise ValueError(
            f"easyr1: ground_truth must be 'prompt' or 'reference'; got {ground_truth!r}"
        )
    source = get_reward_source(DEFAULTS, settings)
    samples = _samples(reward_inputs, ground_truth, source.settings)
    rewards = source.rewards(samples)
    values = numbers(rewards, source.settings.on_failure, groups_of(samples))
    names = source.aspect_names.update(rewards)
    return [
        {"overall": value, **_logged(components(reward, names))}
        for reward, value in zip(rewards, values, strict=True)
    ]


def _samples(
    inputs: Sequence[Mapping[str, Any]], meaning: str | None, settings: Settings
) -> list[Sample]:
    """The samples of a batch; those of one prompt are a group, which EasyR1 sends together."""
    rows = [_row(one["ground_truth"], meaning, index) for index, one in enumerate(inputs)]

    def read(row: Mapping[str, Any], one: Mapping[str, Any]) -> Sample:
        return Sample(
            prompt=prompt_of(row["prompt"]),
            completion=without_end_tokens(one["response"]),
            finish_reason=finish_reason_at(one.get("response_length", 0), settings),
        )

    samples = read_each(DEFAULTS.trainer, read, rows=rows, reward_inputs=inputs)
    prompts = [one.prompt for one in samples]
    located = with_rows(samples, rows, settings, prompts=prompts)
    if settings.fields is not None:
        return located
    return [
        replace(one, fields={**usual_fields(row), **(one.fields or {})} or None)
        for one, row in zip(located, rows, strict=True)
    ]


def _row(truth: Any, meaning: str | None, index: int) -> Mapping[str, Any]:
    """The prompt and the other values of a ground truth, by name."""
    if isinstance(truth, str) and meaning is not None:
        return {"prompt": truth} if meaning == "prompt" else {"prompt": "", "reference": truth}
    row = _object(truth)
    if row is None or row.get("prompt") is None:
        raise ValueError(
            f"easyr1: sample {index} has no prompt, which EasyR1 does not pass: put "
            f'{{"prompt": ..., "reference": ...}} into the answer column, or set '
            f"reward_function_kwargs.ground_truth to 'prompt' or 'reference' for plain strings; "
            f"got {truth!r:.200}"
        )
    return row


def _object(truth: Any) -> Mapping[str, Any] | None:
    if isinstance(truth, str):
        try:
            truth = json.loads(truth)
        except (ValueError, RecursionError):
            return None
    return truth if isinstance(truth, Mapping) else None


def row_of_dataset(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value of the answer column of a dataset row, if it is an object with a prompt.

    The column is `ground_truth`, `answer` (EasyR1's own `data.answer_key`) or the only one.
    """
    names = [name for name in ("ground_truth", "answer") if name in row]
    for name in names or (list(row) if len(row) == 1 else []):
        truth = _object(row[name])
        if truth is not None and truth.get("prompt") is not None:
            return truth
    return row


def usual_fields(row: Mapping[str, Any]) -> dict[str, str]:
    """The strings and numbers besides the prompt, as fields of the same name.

    None and NaN are missing values.
    """
    return {
        str(name): str(value)
        for name, value in row.items()
        if name != "prompt"
        and isinstance(value, (str, int, float))
        and not isinstance(value, bool)
        and value not in ("", math.inf, -math.inf)
        and value == value
    }


def _logged(parts: Mapping[str, float]) -> dict[str, float]:
    """The components without NaN, which would make the means that EasyR1 logs NaN."""
    return {
        f"alarm_{name}": part
        for name, part in parts.items()
        if name != "reward" and not math.isnan(part)
    }
