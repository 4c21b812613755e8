"""AReaL: `workflow="alarm_client.trainers.areal.AlarmWorkflow"`, or `reward_fn` in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from alarm_client.trainers._columns import finish_reason_at, with_rows
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "IN_A_WORKER", "areward", "reward_fn"]

# AReaL awaits an episode without a time limit; an exception drops it.
_REFERENCES = ("reference", "answer", "ground_truth", "solution", "label")
DEFAULTS = TrainerDefaults("areal", timeout=600.0, aspects="admitted", references=_REFERENCES)
HABITS = DEFAULTS  # former name, kept as an alias

# AReaL's worker processes run one reward each. It times out after 15 s, including the wait for a
# worker, and uses 0 after the fourth timeout; after an exception it retries up to four times.
IN_A_WORKER = TrainerDefaults("areal", timeout=12.0, aspects="admitted", references=_REFERENCES)


def reward_fn(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    messages: Sequence[Any] | None = None,
    **row: Any,
) -> float:
    """The reward of one completion, in one of AReaL's worker processes.

    If the server is unavailable for a minute, AReaL uses 0; `AlarmWorkflow` waits instead.
    """
    source = get_reward_source(IN_A_WORKER)
    sample = _sample(prompt, completions, messages)
    reason = finish_reason_at(len(completion_ids), source.settings)
    samples = with_rows([replace(sample, finish_reason=reason)], [row], source.settings)
    rewards = source.rewards(samples)
    return numbers(rewards, source.settings.on_failure)[0]


async def areward(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    messages: Sequence[Any] | None = None,
    max_new_tokens: int | None = None,
    **row: Any,
) -> float:
    """As `reward_fn`, awaited concurrently with other episodes' rewards.

    `max_new_tokens`: the policy's limit unless `max_completion_tokens` is set.
    """
    source = get_reward_source(DEFAULTS)
    sample = _sample(prompt, completions, messages)
    reason = finish_reason_at(len(completion_ids), source.settings, max_new_tokens)
    samples = with_rows([replace(sample, finish_reason=reason)], [row], source.settings)
    rewards = await source.arewards(samples)
    return numbers(rewards, source.settings.on_failure)[0]


def _sample(prompt: str, completions: str, messages: Sequence[Any] | None) -> Sample:
    """Prefers the `messages` of a row, as AReaL decodes prompts with special tokens."""
    return Sample(
        prompt=prompt if messages is None else prompt_of(messages),
        completion=without_end_tokens(completions),
    )


@lru_cache(maxsize=1)
def _workflow() -> type[Any]:
    from areal.workflow.rlvr import RLVRWorkflow

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        RLVRWorkflow.__init__(self, *args, **{"reward_fn": areward, **given})
        limit = getattr(self.gconfig, "max_new_tokens", None)
        # In place of AReaL's pool of worker processes.
        self.async_reward_fn = partial(areward, max_new_tokens=limit)

    doc = "AReaL's RLVRWorkflow with awaited rewards; it requires no `reward_fn`."
    return type("AlarmWorkflow", (RLVRWorkflow,), {"__doc__": doc, "__init__": __init__})


def __getattr__(name: str) -> Any:
    # The class that AReaL looks up by dotted name; areal is imported only then.
    if name == "AlarmWorkflow":
        return _workflow()
    raise AttributeError(f"module {__name__} has no {name}")
