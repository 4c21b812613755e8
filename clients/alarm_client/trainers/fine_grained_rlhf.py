"""FineGrainedRLHF's reward object: token rewards for its PPOTrainer and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alarm_client.trainers._columns import row_of, with_rows
from alarm_client.trainers._components import columns, means
from alarm_client.trainers._dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers._inputs import decoded_prompt
from alarm_client.trainers._settings import TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource
from alarm_client.types import Reward, Text

__all__ = ["DEFAULTS", "TokenRewards", "make_reward"]

DEFAULTS = TrainerDefaults(
    "fine_grained_rlhf", timeout=480.0, same_keys=True, references=("reference",)
)
HABITS = DEFAULTS  # former name, kept as an alias


class TokenRewards:
    """The methods that the trainer calls, except for its KL penalty: see `make_reward`.

    `prompt_key`: the key of the prompt in a row's metadata; by default its ids are decoded.
    """

    def __init__(
        self, tokenizer: Any, kl_coef: float, prompt_key: str = "prompt", **settings: Any
    ) -> None:
        self.tokenizer = tokenizer
        self.kl_coef = kl_coef
        self.prompt_key = prompt_key
        self.source = RewardSource(read_settings(DEFAULTS, settings))

    def get_reward(self, **batch: Any) -> dict[str, list[list[float]]]:
        """`rewards/raw`: one list per response, one float per unmasked token.

        The trainer pads them on the right, as it does responses.
        """
        rewards, lengths = self._judge(**batch)
        return {"rewards/raw": token_rewards(rewards, lengths, self.source.settings.on_failure)}

    def eval_metrics(self, **batch: Any) -> dict[str, list[float]]:
        """`eval/rewards`, by which the trainer selects its best checkpoint, and the components."""
        rewards, lengths = self._judge(**batch)
        rows = token_rewards(rewards, lengths, self.source.settings.on_failure)
        parts = columns(rewards, self.source.aspect_names.update(rewards))
        return {
            "eval/rewards": [sum(row) for row in rows],
            "eval/lengths": [float(length) for length in lengths],
            **{f"eval/alarm_{name}": values for name, values in parts.items()},
        }

    def aggregate_metrics(self, wandb_table: Any, value_columns: Sequence[str]) -> dict[str, float]:
        """The mean of each column of the trainer's table."""
        start = len(wandb_table.columns) - len(value_columns)
        table = {
            name: [row[start + index] for row in wandb_table.data]
            for index, name in enumerate(value_columns)
        }
        return means(table)

    def _judge(
        self,
        prompts_input_ids: Any,
        prompts_attention_mask: Any,
        generated_input_ids: Any,
        generated_attention_mask: Any,
        generated_texts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[list[Reward], list[int]]:
        ids = _kept(generated_input_ids, generated_attention_mask)
        prompts = _kept(prompts_input_ids, prompts_attention_mask)
        samples = [
            token_sample(self._prompt(prompt, metadata, index), row, self.tokenizer)
            for index, (prompt, row) in enumerate(zip(prompts, ids, strict=True))
        ]
        rows = [row_of(metadata and metadata[index]) for index in range(len(samples))]
        samples = with_rows(samples, rows, self.source.settings)
        return self.source.rewards(samples), [len(row) for row in ids]

    def _prompt(self, ids: list[int], metadata: Any, index: int) -> Text:
        if metadata is not None and self.prompt_key in metadata[index]:
            text: str = metadata[index][self.prompt_key]
            return text
        return decoded_prompt(self.tokenizer, ids)


def make_reward(tokenizer: Any, kl_coef: float, **settings: Any) -> Any:
    """The `reward_model` of FineGrainedRLHF's PPOTrainer, with that code's own KL penalty."""
    from fgrlhf.reward import BasicReward

    return type("AlarmReward", (TokenRewards, BasicReward), {})(tokenizer, kl_coef, **settings)


def _kept(ids: Any, mask: Any) -> list[list[int]]:
    """The unmasked ids of each row."""
    return [
        [token for token, kept in zip(plain_ids(row), plain_ids(marks), strict=True) if kept]
        for row, marks in zip(ids, mask, strict=True)
    ]
