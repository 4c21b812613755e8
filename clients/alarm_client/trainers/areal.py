"""AReaL: `workflow="alarm_client.trainers.areal.AlarmWorkflow"`, or a `reward_fn` of any other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from alarm_client.trainers._columns import with_rows
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults
from alarm_client.trainers._source import get_reward_source
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "IN_A_WORKER", "areward", "reward_fn"]

# An episode is awaited for as long as it takes; what is raised drops it.
_REFERENCES = ("reference", "answer", "ground_truth", "solution", "label")
DEFAULTS = TrainerDefaults("areal", timeout=600.0, aspects="admitted", references=_REFERENCES)

# AReaL's few worker processes run one reward each. It gives up after 15 s, waiting for a worker
# included, and takes 0 after the fourth time; what is raised before it tries four times.
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

    A server that is away for a minute costs rewards there: AReaL takes 0. `AlarmWorkflow` waits.
    """
    source = get_reward_source(IN_A_WORKER)
    samples = with_rows([_sample(prompt, completions, messages)], [row], source.settings)
    rewards = source.rewards(samples)
    return numbers(rewards, source.settings.on_failure)[0]


async def areward(
    prompt: str,
    completions: str,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    messages: Sequence[Any] | None = None,
    **row: Any,
) -> float:
    """As `reward_fn`, awaited beside the other episodes' rewards."""
    source = get_reward_source(DEFAULTS)
    samples = with_rows([_sample(prompt, completions, messages)], [row], source.settings)
    rewards = await source.arewards(samples)
    return numbers(rewards, source.settings.on_failure)[0]


def _sample(prompt: str, completions: str, messages: Sequence[Any] | None) -> Sample:
    """AReaL decodes both texts with special tokens: a row's `messages` are the better prompt."""
    return Sample(
        prompt=prompt if messages is None else prompt_of(messages),
        completion=without_end_tokens(completions),
    )


@lru_cache(maxsize=1)
def _workflow() -> type[Any]:
    from areal.workflow.rlvr import RLVRWorkflow

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        RLVRWorkflow.__init__(self, *args, **{"reward_fn": areward, **given})
        self.async_reward_fn = areward  # in place of AReaL's pool of worker processes

    doc = "AReaL's RLVRWorkflow, whose rewards are awaited: it needs no `reward_fn`."
    return type("AlarmWorkflow", (RLVRWorkflow,), {"__doc__": doc, "__init__": __init__})


def __getattr__(name: str) -> Any:
    # The class that AReaL looks up by its dotted name; areal is imported when it is.
    if name == "AlarmWorkflow":
        return _workflow()
    raise AttributeError(f"module {__name__} has no {name}")
