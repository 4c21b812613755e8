"""verifiers and prime-rl: a reward for v1 tasks, and two for the older Rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.trainers._columns import Row, groups_of, row_of, with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import completion_of, prompt_of, read_each, role_of
from alarm_client.trainers._messages import get, tools_of
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "group_reward", "reward", "row_of_dataset", "rubric_reward"]

# A Rubric turns an exception into 0.0 and a log line; a v1 task marks the trace as failed.
DEFAULTS = TrainerDefaults(
    "verifiers",
    timeout=240.0,
    whole_groups="group_reward among a Rubric's functions",
    references=("reference", "answer", "ground_truth", "solution"),
    group_column="example_id",
)
HABITS = DEFAULTS  # former name, kept as an alias


async def reward(task: Any, trace: Any) -> float:
    """v1: the reward of a trace's replies; its components become metrics of the trace.

    The completion is everything from the first sampled reply on, calls and results of tools
    included.

    Configured by `rewards.alarm.fn = "alarm_client.trainers.verifiers.reward"` of a task's config.
    """
    sample = _of_trace(trace)
    source = get_reward_source(DEFAULTS)
    data = getattr(task, "data", task)  # the dataset row of a v1 Task
    rewards = await source.arewards(
        with_rows([sample], [row_of_dataset(row_of(data))], source.settings)
    )
    (value,) = numbers(rewards, source.settings.on_failure)
    parts = components(rewards[0], source.aspect_names.update(rewards))
    trace.record_metrics({f"alarm/{name}": part for name, part in parts.items()})
    return value


async def rubric_reward(
    prompt: Any, completion: Any, answer: Any = None, info: Any = None, state: Any = None
) -> float:
    """Rubric: the reward of one rollout."""
    source = get_reward_source(DEFAULTS)
    samples = [Sample(prompt=prompt_of(prompt), completion=completion_of(completion))]
    rows = [_row(answer, info, state)]
    rewards = await source.arewards(with_rows(samples, rows, source.settings))
    return numbers(rewards, source.settings.on_failure)[0]


async def group_reward(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    answers: Sequence[Any] | None = None,
    infos: Sequence[Any] | None = None,
    states: Sequence[Any] | None = None,
) -> list[float]:
    """Rubric: the rewards of a group of rollouts in one call."""
    source = get_reward_source(DEFAULTS)

    def read(prompt: Any, completion: Any) -> Sample:
        return Sample(prompt=prompt_of(prompt), completion=completion_of(completion))

    samples = read_each(DEFAULTS.trainer, read, prompts=prompts, completions=completions)
    nothing = [None] * len(samples)
    columns = zip(answers or nothing, infos or nothing, states or nothing, strict=True)
    rows = [_row(*values) for values in columns]
    samples = with_rows(samples, rows, source.settings, prompts=prompts)
    rewards = await source.arewards(samples)
    return numbers(rewards, source.settings.on_failure, groups_of(samples))


def row_of_dataset(row: Row) -> Row:
    """A row merged with its `info`; `example_id` is the `idx` of a v1 task's data."""
    info = row.get("info")
    names = {} if row.get("idx") is None else {"example_id": row["idx"]}
    return {**names, **info, **row} if isinstance(info, Mapping) else {**names, **row}


def _row(answer: Any, info: Any, state: Any) -> Row:
    """What a Rubric says of a rollout, whose state has the example's number."""
    example = state.get("example_id") if isinstance(state, Mapping) else None
    names = {} if example is None else {"example_id": example}
    return row_of_dataset({**names, "answer": answer, "info": info})


def _of_trace(trace: Any) -> Sample:
    """The sample of a trace's branch; ValueError if it has no reply."""
    branch = _branch(trace)
    nodes = [] if branch is None else list(branch.nodes)
    messages = [node.message for node in nodes] if nodes else list(trace.messages)
    replies = [index for index, one in enumerate(messages) if role_of(one) == "assistant"]
    if not replies:
        raise ValueError("verifiers: the trace has no reply to score")
    sampled = [index for index, node in enumerate(nodes) if node.sampled]
    start = sampled[0] if sampled else replies[-1]
    is_cut = bool(getattr(trace, "is_truncated", False))
    return Sample(
        prompt=prompt_of(messages[:start]),
        completion=completion_of(messages[start : replies[-1] + 1]),
        tools=None if branch is None else tools_of(branch.tools),
        finish_reason="length" if is_cut else None,
    )


def _branch(trace: Any) -> Any:
    """The last branch that is trained, or that of the root agent if the trace names its reply."""
    branches = list(getattr(trace, "branches", ()))
    trained = [branch for branch in branches if getattr(branch, "trainable", True)] or branches
    reply = getattr(trace, "root_reply", None)
    of_root = [branch for branch in trained if reply is not None and _ends_with(branch, reply)]
    return next(reversed(of_root or trained), None)


def _ends_with(branch: Any, reply: str) -> bool:
    contents = [get(node.message, "content") for node in branch.nodes if node.sampled]
    return bool(contents) and str(contents[-1] or "").strip() == reply.strip()
