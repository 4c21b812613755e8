"""NeMo RL's environment `alarm`: `python -m alarm_client.trainers.nemo_rl examples/run_grpo.py`."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from alarm_client.trainers._columns import groups_of, row_of, with_rows
from alarm_client.trainers._components import columns, means
from alarm_client.trainers._failures import numbers_of_parts
from alarm_client.trainers._inputs import read_each, split_messages
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource
from alarm_client.types import Sample

__all__ = ["DEFAULTS", "Environment", "main", "register"]

DEFAULTS = TrainerDefaults(
    "nemo_rl",
    timeout=600.0,
    whole_groups="its synchronous rollouts",
    references=("ground_truth", "expected_answer", "reference", "answer"),
)
HABITS = DEFAULTS  # former name, kept as an alias
_ACTOR = "alarm_client.trainers.nemo_rl.AlarmEnvironment"


class Environment:
    """A single-turn environment: scores the last message and ends the episode.

    `config` may contain any of Settings, and `multi_reward: true` for `rewards` as a dict of the
    holistic score and each aspect (GDPO) instead of their hierarchical sum.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        settings = dict(config or {})
        self.is_multi = bool(settings.pop("multi_reward", False))
        self.source = RewardSource(read_settings(DEFAULTS, settings))
        self.num_samples = 0
        self.parts: dict[str, float] = {}

    def step(self, message_log_batch: Sequence[Sequence[Any]], metadata: Sequence[Any]) -> Any:
        """NeMo RL's EnvironmentReturn: `rewards` [batch], every episode terminated."""
        import torch
        from nemo_rl.environments.interfaces import EnvironmentReturn

        turns = read_each(DEFAULTS.trainer, split_messages, message_log_batch=message_log_batch)
        samples = [Sample(prompt=prompt, completion=completion) for prompt, completion in turns]
        settings = self.source.settings
        rows = [row_of(one) for one in metadata or [None] * len(samples)]
        prompts = [prompt for prompt, _ in turns]
        samples = with_rows(samples, rows, settings, prompts=prompts)
        rewards = self.source.rewards(samples)
        names = self.source.aspect_names.update(rewards)
        self.parts = means(columns(rewards, names))
        found = numbers_of_parts(
            rewards,
            settings.on_failure,
            ("reward", "holistic", *names) if self.is_multi else ("reward",),
            groups_of(samples),
        )
        values = found.pop("reward")
        by_name = {name: torch.tensor(parts) for name, parts in found.items()}
        size = len(samples)
        return EnvironmentReturn(
            observations=[
                {"role": "environment", "content": f"Environment: {value:g}"} for value in values
            ],
            metadata=list(metadata),
            next_stop_strings=[None] * size,
            rewards=by_name if self.is_multi else torch.tensor(values),
            terminateds=torch.ones(size, dtype=torch.bool),
            answers=[completion for _, completion in turns],
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """The batch unchanged, and the means of the reward components of this actor's last step."""
        return batch, {f"alarm/{name}": mean for name, mean in self.parts.items()}


def register(name: str = "alarm") -> None:
    """Register `name` as an environment of NeMo RL; call it before environments are created."""
    from nemo_rl.distributed.ray_actor_environment_registry import ACTOR_ENVIRONMENT_REGISTRY
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES
    from nemo_rl.environments.utils import register_env

    register_env(name, _ACTOR)
    ACTOR_ENVIRONMENT_REGISTRY[_ACTOR] = PY_EXECUTABLES.SYSTEM


def main() -> None:
    """Run a script with its arguments after registering `alarm`."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m alarm_client.trainers.nemo_rl SCRIPT [ARGUMENT]...")
    register()
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")


@lru_cache(maxsize=1)
def _actor() -> Any:
    import ray
    from nemo_rl.environments.interfaces import EnvironmentInterface

    return ray.remote(type("AlarmEnvironment", (Environment, EnvironmentInterface), {}))


def __getattr__(name: str) -> Any:
    # The Ray actor that NeMo RL looks up by dotted name; Ray is imported only then.
    if name == "AlarmEnvironment":
        return _actor()
    raise AttributeError(f"module {__name__} has no {name}")


if __name__ == "__main__":
    main()
