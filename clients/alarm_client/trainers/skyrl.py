"""SkyRL: a SkyRL-Gym environment, and a generator with token rewards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from alarm_client.trainers._columns import Row, groups_of, row_of, with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._dense import plain_ids, policy_mask, token_rewards, token_sample
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource, get_reward_source
from alarm_client.types import Sample, Text

__all__ = ["DEFAULTS", "AlarmGenerator", "Environment", "register", "row_of_dataset"]

DEFAULTS = TrainerDefaults(
    "skyrl",
    timeout=600.0,
    whole_groups="skyrl_dense, whose generator receives the batch",
    references=("ground_truth", "reference", "answer"),
    group_column="uid",
)
HABITS = DEFAULTS  # former name, kept as an alias


class Environment:
    """A single-turn environment: scores the action and ends the episode.

    `env_config` may contain any of Settings. `is_judged`: false leaves scoring to AlarmGenerator.
    """

    def __init__(
        self,
        env_config: Any = None,
        extras: Mapping[str, Any] | None = None,
        is_judged: bool = True,
    ) -> None:
        super().__init__()
        self.source = get_reward_source(DEFAULTS, dict(env_config or {}))
        self.row = row_of_dataset(extras)
        self.is_judged = is_judged
        self.prompt: Text = []
        self.parts: dict[str, float] = {}

    def init(self, prompt: Any) -> tuple[Any, dict[str, Any]]:
        """Store the conversation, which SkyRL passes before the first turn."""
        self.prompt = prompt_of(prompt)
        return prompt, {}

    def step(self, action: str) -> Any:
        """SkyRL's BaseTextEnvStepOutput: the reward, with its components as metadata."""
        from skyrl_gym.envs.base_text_env import BaseTextEnvStepOutput

        if not self.is_judged:
            return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})
        sample = Sample(prompt=self.prompt, completion=without_end_tokens(action))
        rewards = self.source.rewards(with_rows([sample], [self.row], self.source.settings))
        (value,) = numbers(rewards, self.source.settings.on_failure)
        parts = components(rewards[0], self.source.aspect_names.update(rewards))
        self.parts = {f"alarm_{name}": part for name, part in parts.items()}
        return BaseTextEnvStepOutput(observations=[], reward=value, done=True, metadata=self.parts)

    def get_metrics(self) -> dict[str, float]:
        """The reward components, which SkyRL averages over episodes."""
        return self.parts


class AlarmGenerator:
    """Wraps a SkyRL generator and replaces the rewards of its outputs by token rewards."""

    def __init__(self, generator: Any, tokenizer: Any, **settings: Any) -> None:
        self.generator = generator
        self.tokenizer = tokenizer
        self.source = RewardSource(read_settings(DEFAULTS, settings))

    async def generate(self, input_batch: Any) -> Any:
        """The wrapped generator's output; `rewards[i]` is as long as `response_ids[i]`."""
        output = await self.generator.generate(input_batch)
        prompts = input_batch["prompts"]
        ids = [plain_ids(row) for row in output["response_ids"]]
        if len(prompts) != len(ids):
            raise ValueError(
                f"skyrl: {len(prompts)} prompts and {len(ids)} responses; token rewards "
                "do not support step-wise trajectories"
            )
        settings = self.source.settings
        reasons = output.get("stop_reasons") or [None] * len(ids)
        openings = output.get("prompt_token_ids") or [None] * len(ids)
        masks = [
            policy_mask(mask, row, self.tokenizer, opening)
            for mask, row, opening in zip(_masks(output, len(ids)), ids, openings, strict=True)
        ]
        samples = [
            token_sample(prompt_of(prompt), row, self.tokenizer, mask, reason, opening)
            for prompt, row, mask, reason, opening in zip(
                prompts, ids, masks, reasons, openings, strict=True
            )
        ]
        extras = input_batch.get("env_extras") or [None] * len(ids)
        uids = _uids(input_batch, len(ids))
        extra_rows = [
            {**row_of_dataset(extra), **uid} for extra, uid in zip(extras, uids, strict=True)
        ]
        samples = with_rows(samples, extra_rows, settings, prompts=prompts)
        rewards = await self.source.arewards(samples)
        lengths = [len(row) for row in ids]
        groups = groups_of(samples)
        rows = token_rewards(rewards, lengths, settings.on_failure, groups, masks)
        return {**output, "rewards": rows}


def _uids(input_batch: Mapping[str, Any], num_rows: int) -> list[Row]:
    """The uid of each row's prompt, by which SkyRL compares rewards; nothing where it has none."""
    trajectories = input_batch.get("trajectory_ids")
    if trajectories is None:
        return [{}] * num_rows
    return [{"uid": one.instance_id} for one in trajectories]


def _masks(output: Mapping[str, Any], num_rows: int) -> list[list[int] | None]:
    """SkyRL's loss masks, 0 for observations; None for each response without them."""
    masks = output.get("loss_masks")
    if not isinstance(masks, (list, tuple)):
        return [None] * num_rows
    return [plain_ids(mask) for mask in masks]


def row_of_dataset(extras: Any) -> Row:
    """SkyRL's dataset columns; `ground_truth` is in `reward_spec`."""
    row = row_of(extras)
    spec = row_of(row.get("reward_spec") or row.get("reward_model"))
    return {**row_of(row.get("extra_info")), **spec, **row}


def register(name: str = "alarm", is_judged: bool = True) -> None:
    """Register `name` as an environment of SkyRL-Gym, in the process that creates environments."""
    from skyrl_gym.envs import register as register_env

    given = {"is_judged": is_judged}
    register_env(id=name, entry_point="alarm_client.trainers.skyrl:AlarmEnv", kwargs=given)


@lru_cache(maxsize=1)
def _environment() -> type[Any]:
    from skyrl_gym.envs.base_text_env import BaseTextEnv

    return type("AlarmEnv", (Environment, BaseTextEnv), {})


def __getattr__(name: str) -> Any:
    # The class that SkyRL-Gym looks up by entry point; skyrl_gym is imported only then.
    if name == "AlarmEnv":
        return _environment()
    raise AttributeError(f"module {__name__} has no {name}")
