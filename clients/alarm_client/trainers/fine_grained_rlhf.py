"""FineGrainedRLHF's reward: an object whose `get_reward` returns one float a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alarm_client.trainers.dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers.settings import Habits, read_settings
from alarm_client.trainers.source import RewardSource
from alarm_client.types import Text

__all__ = ["HABITS", "AlarmReward"]

HABITS = Habits("fine_grained_rlhf", timeout=480.0, aspects="admitted")


class AlarmReward:
    """`get_reward` as FineGrainedRLHF's trainer calls it: rewards from the first token on.

    Its trainer pads them on the right, where its responses end; `prompt_key` names the prompt's
    text in a sample's metadata, else the prompt's ids are decoded.
    """

    def __init__(self, tokenizer: Any, prompt_key: str = "prompt", **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.prompt_key = prompt_key
        self.source = RewardSource(read_settings(HABITS, settings))

    def get_reward(
        self,
        prompts_input_ids: Any,
        prompts_attention_mask: Any,
        generated_input_ids: Any,
        generated_attention_mask: Any,
        generated_texts: Sequence[str],
        metadata: Sequence[Any] | None = None,
    ) -> dict[str, list[list[float]]]:
        """`rewards/raw`: a list a response, as long as its attention mask is."""
        ids = _kept(generated_input_ids, generated_attention_mask)
        prompts = _kept(prompts_input_ids, prompts_attention_mask)
        samples = [
            token_sample(self._prompt(prompt, metadata, index), row, self.tokenizer)
            for index, (prompt, row) in enumerate(zip(prompts, ids, strict=True))
        ]
        rewards = self.source.rewards(samples)
        lengths = [len(row) for row in ids]
        return {"rewards/raw": token_rewards(rewards, lengths, self.source.settings.on_failure)}

    def _prompt(self, ids: list[int], metadata: Sequence[Any] | None, index: int) -> Text:
        if metadata is not None and self.prompt_key in metadata[index]:
            text: str = metadata[index][self.prompt_key]
            return text
        decoded: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return decoded


def _kept(ids: Any, mask: Any) -> list[list[int]]:
    """The ids of each row that its mask keeps."""
    return [
        [token for token, kept in zip(plain_ids(row), plain_ids(marks), strict=True) if kept]
        for row, marks in zip(ids, mask, strict=True)
    ]
