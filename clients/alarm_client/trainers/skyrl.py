"""SkyRL: a SkyRL-Gym environment, and a generator whose rewards are one float a token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from alarm_client.trainers._columns import Row, groups_of, row_of, with_rows
from alarm_client.trainers._components import components
from alarm_client.trainers._dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import prompt_of, without_end_tokens
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource, get_reward_source
from alarm_client.types import Sample, Text

__all__ = ["DEFAULTS", "AlarmGenerator", "Environment", "register", "row_of_dataset"]

DEFAULTS = TrainerDefaults(
    "skyrl",
    timeout=600.0,
    whole_groups="skyrl_dense, whose generator holds the batch",
    references=("ground_truth", "reference", "answer"),
)


class Environment:
    """One turn: the action is judged as the answer to the prompt, the episode ends.

    `env_config` may hold any of Settings. `is_judged`: false leaves it to an AlarmGenerator.
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
        """Keep the conversation, which SkyRL passes before the first turn."""
        self.prompt = prompt_of(prompt)
        return prompt, {}

    def step(self, action: str) -> Any:
        """SkyRL's BaseTextEnvStepOutput: the reward, with its parts as metadata."""
        from skyrl_gym.envs.base_text_env import BaseTextEnvStepOutput

        if not self.is_judged:
            return BaseTextEnvStepOutput(observations=[], reward=0.0, done=True, metadata={})
        sample = Sample(prompt=self.prompt, completion=without_end_tokens(action))
        rewards = self.source.rewards(with_rows([sample], [self.row], self.source.settings))
        (value,) = numbers(rewards, self.source.settings.on_failure)
        parts = components(rewards[0], self.source.aspect_names.seen(rewards))
        self.parts = {f"alarm_{name}": part for name, part in parts.items()}
        return BaseTextEnvStepOutput(observations=[], reward=value, done=True, metadata=self.parts)

    def get_metrics(self) -> dict[str, float]:
        """The reward's parts, which SkyRL averages over its episodes."""
        return self.parts


class AlarmGenerator:
    """A SkyRL generator in front of another: its outputs with token rewards in place of theirs."""

    def __init__(self, generator: Any, tokenizer: Any, **settings: Any) -> None:
        self.generator = generator
        self.tokenizer = tokenizer
        self.source = RewardSource(read_settings(DEFAULTS, settings))

    async def generate(self, input_batch: Any) -> Any:
        """The other's GeneratorOutput; `rewards[i]` is as long as `response_ids[i]`."""
        output = await self.generator.generate(input_batch)
        prompts = input_batch["prompts"]
        ids = [plain_ids(row) for row in output["response_ids"]]
        if len(prompts) != len(ids):
            raise ValueError(
                f"skyrl: {len(prompts)} prompts and {len(ids)} responses; step-wise "
                "trajectories have no token rewards here"
            )
        settings = self.source.settings
        samples = [
            token_sample(prompt_of(prompt), row, self.tokenizer)
            for prompt, row in zip(prompts, ids, strict=True)
        ]
        extras = input_batch.get("env_extras") or [None] * len(ids)
        extra_rows = [row_of_dataset(extra) for extra in extras]
        samples = with_rows(samples, extra_rows, settings, prompts=prompts)
        rewards = await self.source.arewards(samples)
        lengths = [len(row) for row in ids]
        rows = token_rewards(rewards, lengths, settings.on_failure, groups_of(samples))
        return {**output, "rewards": rows}


def row_of_dataset(extras: Any) -> Row:
    """SkyRL's dataset columns; the `ground_truth` is inside of `reward_spec`."""
    row = row_of(extras)
    spec = row_of(row.get("reward_spec") or row.get("reward_model"))
    return {**row_of(row.get("extra_info")), **spec, **row}


def register(name: str = "alarm", is_judged: bool = True) -> None:
    """Make `name` an environment class of SkyRL-Gym: call it where environments are made."""
    from skyrl_gym.envs import register as register_env

    given = {"is_judged": is_judged}
    register_env(id=name, entry_point="alarm_client.trainers.skyrl:AlarmEnv", kwargs=given)


@lru_cache(maxsize=1)
def _environment() -> type[Any]:
    from skyrl_gym.envs.base_text_env import BaseTextEnv

    return type("AlarmEnv", (Environment, BaseTextEnv), {})


def __getattr__(name: str) -> Any:
    # The class that SkyRL-Gym looks up by its entry point; skyrl_gym is imported when it is.
    if name == "AlarmEnv":
        return _environment()
    raise AttributeError(f"module {__name__} has no {name}")
