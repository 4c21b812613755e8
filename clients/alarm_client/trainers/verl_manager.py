"""verl's reward manager: one trajectory awaited (0.7.1 on), or a whole batch (up to 0.7.0)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from alarm_client.trainers.components import columns, components
from alarm_client.trainers.dense import plain_ids, token_rewards, token_sample
from alarm_client.trainers.failure import numbers
from alarm_client.trainers.placement import left_aligned
from alarm_client.trainers.settings import NAMES, Habits, read_settings
from alarm_client.trainers.source import RewardSource
from alarm_client.trainers.texts import decoded_prompt, prompt_of
from alarm_client.types import Sample, Text

if TYPE_CHECKING:
    import torch

__all__ = ["HABITS", "AlarmRewardManager"]

# verl's rate_limited manager gives up after 300 s; its dicts must have the same keys throughout.
HABITS = Habits("verl", timeout=240.0, same_keys=True)


class AlarmRewardManager:
    """Rewards from the conversation and the sampled ids that verl holds; it imports no verl.

    `run_single` is awaited for one trajectory, and `assemble_rm_scores` lays the scores of a batch;
    verl up to 0.7.0 calls the manager with the whole batch and uses its token rewards. Settings
    come from `reward.reward_kwargs` or the environment. `dense = true` there returns token rewards
    from `run_single`, which verl takes where its own reward model is colocated and nowhere else.
    """

    def __init__(
        self,
        config: Any = None,
        tokenizer: Any = None,
        compute_score: Any = None,
        **reward_kwargs: Any,
    ) -> None:
        given = {**_of_config(config), **reward_kwargs}
        self.tokenizer = tokenizer
        self.is_dense = bool(given.get("dense"))
        if self.is_dense and config is not None and not _is_colocated(config):
            raise ValueError(
                "verl's streaming rewards are one float a trajectory: dense needs "
                "reward.reward_model.enable without a resource pool of its own"
            )
        own = {name: value for name, value in given.items() if name in NAMES}
        self.source = RewardSource(read_settings(HABITS, own))

    async def run_single(self, data: Any) -> dict[str, Any]:
        """`reward_score` and `reward_extra_info` of a trajectory, judged by its last sequence."""
        ids, sample = self._sample(data[len(data) - 1])
        rewards = await self.source.arewards([sample])
        policy = self.source.settings.on_failure
        score: float | list[float]
        if self.is_dense:
            (score,) = token_rewards(rewards, [len(ids)], policy)
        else:
            (score,) = numbers(rewards, policy)
        parts = components(rewards[0], self.source.aspect_names.seen(rewards))
        extra = {f"alarm_{name}": value for name, value in parts.items()}
        return {"reward_score": score, "reward_extra_info": extra}

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """`reward_tensor` [batch, response length] and the parts of the rewards by name."""
        located = [self._sample(data[index]) for index in range(len(data))]
        rewards = self.source.rewards([sample for _, sample in located])
        lengths = [len(ids) for ids, _ in located]
        rows = token_rewards(rewards, lengths, self.source.settings.on_failure)
        tensor = _as_tensor(rows, data.batch["responses"])
        if not return_dict:
            return tensor
        parts = columns(rewards, self.source.aspect_names.seen(rewards))
        extra = {f"alarm_{name}": values for name, values in parts.items()}
        return {"reward_tensor": tensor, "reward_extra_info": extra}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[Any]) -> torch.Tensor:
        """`rm_scores` [batch, response length]: a list from token 0 on, a float at the last."""
        responses = data.batch["responses"]
        mask = data.batch["attention_mask"][:, -responses.shape[1] :]
        lengths = mask.sum(dim=1).tolist()
        rows = [
            list(score) if isinstance(score, (list, tuple)) else [0.0] * (length - 1) + [score]
            for score, length in zip(scores, lengths, strict=True)
        ]
        return _as_tensor(rows, responses)

    def _sample(self, item: Any) -> tuple[list[int], Sample]:
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        ids = plain_ids(responses[:length])
        return ids, token_sample(self._prompt(item), ids, self.tokenizer)

    def _prompt(self, item: Any) -> Text:
        conversation = item.non_tensor_batch.get("raw_prompt")
        if conversation is not None:
            return prompt_of(conversation)
        prompts = item.batch["prompts"]
        length = int(item.batch["attention_mask"][: prompts.shape[-1]].sum())
        return decoded_prompt(self.tokenizer, plain_ids(prompts[prompts.shape[-1] - length :]))


def _as_tensor(rows: Sequence[Sequence[float]], responses: Any) -> torch.Tensor:
    import torch

    placed = left_aligned(rows, responses.shape[1])
    return torch.tensor(placed, dtype=torch.float32, device=responses.device)


def _of_config(config: Any) -> Mapping[str, Any]:
    reward = None if config is None else config.get("reward")
    return dict((reward or {}).get("reward_kwargs") or {})


def _is_colocated(config: Any) -> bool:
    model = (config.get("reward") or {}).get("reward_model") or {}
    return bool(model.get("enable")) and not model.get("enable_resource_pool")
