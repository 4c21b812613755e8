"""verl: `compute_score` for `reward.custom_reward_function`, and `AlarmRewardManager`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from alarm_client.trainers._columns import Row, groups_of, row_of, with_rows
from alarm_client.trainers._components import columns, components
from alarm_client.trainers._dense import plain_ids, policy_mask, token_rewards, token_sample
from alarm_client.trainers._failures import numbers
from alarm_client.trainers._inputs import decoded_prompt, prompt_of
from alarm_client.trainers._messages import tools_of
from alarm_client.trainers._padding import left_aligned
from alarm_client.trainers._settings import LOG, NAMES, TrainerDefaults, read_settings
from alarm_client.trainers._source import RewardSource, get_reward_source
from alarm_client.types import Reward, Sample, Text

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULTS",
    "AlarmRewardManager",
    "compute_score",
    "compute_score_blocking",
    "row_of_dataset",
    "row_of_verl",
]

# verl's rate_limited manager times out after 300 s; its dicts must always have the same keys.
DEFAULTS = TrainerDefaults("verl", timeout=240.0, same_keys=True, references=("ground_truth",))
HABITS = DEFAULTS  # former name, kept as an alias

# Up to 0.7.0 a manager is called with the whole batch, in which `uid` identifies prompts.
_OF_BATCHES = replace(
    DEFAULTS, whole_groups="its managers up to 0.7.0, called with the batch", group_column="uid"
)


# verl counts a prompt and one reply as two turns.
_ONE_REPLY = 2

_TURNS_AS_TEXT = (
    "verl: compute_score gets the turns of an agent loop as one text, in which the results of "
    "tools are scored as the policy's: use AlarmRewardManager, which tells them apart"
)
_UNKNOWN_TURNS = (
    "verl: a response has several turns, and neither a response_mask nor a known chat template "
    "that tells them apart: results of tools are scored as the policy's text"
)


class AlarmRewardManager:
    """Rewards from the conversation and sampled ids of a verl batch; imports no verl.

    `run_single` is awaited for one trajectory, and `assemble_rm_scores` places the scores of a
    batch; verl up to 0.7.0 calls the manager with the whole batch and uses its token rewards.
    Settings come from `reward.reward_kwargs` or the environment. `dense = true` in them returns
    token rewards from `run_single`, which verl accepts only with a colocated reward model.
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
                "verl's streaming rewards are one float per trajectory: dense requires "
                "reward.reward_model.enable without a resource pool of its own"
            )
        own = {name: value for name, value in given.items() if name in NAMES}
        self.source = RewardSource(read_settings(_OF_BATCHES, own))
        limit = self.source.settings.max_completion_tokens
        self.most_tokens = _response_length(config) if limit is None else limit
        self.tools = _tools_of_config(config) if self.source.settings.tools is None else []

    async def run_single(self, data: Any) -> dict[str, Any]:
        """`reward_score` and `reward_extra_info` of a trajectory, scored by its last sequence."""
        item = data[len(data) - 1]
        ids, mask, sample = self._sample(item)
        samples = with_rows([sample], [_row(item)], self.source.settings)
        rewards = await self.source.arewards(samples)
        policy = self.source.settings.on_failure
        score: float | list[float]
        if self.is_dense:
            (score,) = token_rewards(rewards, [len(ids)], policy, masks=[mask])
        else:
            (score,) = numbers(rewards, policy)
        parts = components(rewards[0], self.source.aspect_names.update(rewards))
        extra = {f"alarm_{name}": value for name, value in parts.items()}
        return {"reward_score": score, "reward_extra_info": extra}

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """`reward_tensor` [batch, response length] and the reward components by name."""
        items = [data[index] for index in range(len(data))]
        located = [self._sample(item) for item in items]
        settings = self.source.settings
        samples = with_rows(
            [sample for _, _, sample in located],
            [_row(item) for item in items],
            settings,
            prompts=[self._prompt(item) for item in items],
        )
        rewards = self.source.rewards(samples)
        lengths = [len(ids) for ids, _, _ in located]
        masks = [mask for _, mask, _ in located]
        groups = groups_of(samples)
        rows = token_rewards(rewards, lengths, settings.on_failure, groups, masks)
        tensor = _as_tensor(rows, data.batch["responses"])
        if not return_dict:
            return tensor
        parts = columns(rewards, self.source.aspect_names.update(rewards))
        extra = {f"alarm_{name}": values for name, values in parts.items()}
        return {"reward_tensor": tensor, "reward_extra_info": extra}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[Any]) -> torch.Tensor:
        """`rm_scores` [batch, response length]: lists from token 0 on, floats at the last token."""
        responses = data.batch["responses"]
        mask = data.batch["attention_mask"][:, -responses.shape[1] :]
        lengths = mask.sum(dim=1).tolist()
        rows = [
            list(score) if isinstance(score, (list, tuple)) else [0.0] * (length - 1) + [score]
            for score, length in zip(scores, lengths, strict=True)
        ]
        return _as_tensor(rows, responses)

    def _sample(self, item: Any) -> tuple[list[int], list[int] | None, Sample]:
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        ids = plain_ids(responses[:length])
        prompt_ids = _prompt_ids(item)
        mask = _mask(item, length)
        if mask is None and _num_turns(item) > _ONE_REPLY:
            mask = [0] * length  # verl's agent loop does not tell its reward workers
        mask = policy_mask(mask, ids, self.tokenizer, prompt_ids)
        if mask is None and _num_turns(item) > _ONE_REPLY:
            _warn_once(_UNKNOWN_TURNS)
        is_cut = self.most_tokens is not None and length >= self.most_tokens
        reason = "length" if is_cut else None
        prompt = self._prompt(item)
        sample = token_sample(prompt, ids, self.tokenizer, mask, reason, prompt_ids)
        return ids, mask, replace(sample, tools=_selected(self.tools, item))

    def _prompt(self, item: Any) -> Text:
        conversation = item.non_tensor_batch.get("raw_prompt")
        if conversation is not None:
            return prompt_of(conversation)
        return decoded_prompt(self.tokenizer, _prompt_ids(item))


def row_of_verl(extra_info: Mapping[str, Any] | None, **columns: Any) -> Row:
    """A dataset row from the arguments of verl: the columns, `extra_info` and its contents."""
    extra = row_of(extra_info)
    return {**extra, "extra_info": extra, **columns}


def _mask(item: Any, length: int) -> list[int] | None:
    """verl's response mask, 0 for results of tools; None where there is none."""
    names = list(item.batch.keys())  # a TensorDict refuses `in`
    if "response_mask" not in names:
        return None
    return plain_ids(item.batch["response_mask"][:length])


def _prompt_ids(item: Any) -> list[int]:
    prompts = item.batch["prompts"]
    length = int(item.batch["attention_mask"][: prompts.shape[-1]].sum())
    return plain_ids(prompts[prompts.shape[-1] - length :])


def _num_turns(item: Any) -> int:
    """The messages of a trajectory, its prompt counted as one; verl's agent loops count them."""
    return int(item.non_tensor_batch.get("__num_turns__", _ONE_REPLY))


def _tools_of_config(config: Any) -> list[Any]:
    """The schemas of the tools of verl's agent loop, as its configuration names them.

    Classes of tools are not created here: their schemas are in the file that names them.
    """
    rollout = _section(_section(config, "actor_rollout_ref"), "rollout")
    paths = _section(rollout, "multi_turn")
    tools: list[Any] = []
    if paths.get("tool_config_path"):
        from omegaconf import OmegaConf

        listed = OmegaConf.to_container(OmegaConf.load(paths["tool_config_path"]), resolve=True)
        tools += [one["tool_schema"] for one in listed["tools"] if one.get("tool_schema")]
    if paths.get("function_tool_path"):
        from verl.tools.function_tool import load_function_tools_from_path

        functions = load_function_tools_from_path(paths["function_tool_path"])
        tools += [one.tool_schema for one in functions]
    return tools_of(tools) or []


def _selected(tools: list[Any], item: Any) -> list[Any] | None:
    """The tools of a trajectory, which its row may choose from all."""
    names = row_of(item.non_tensor_batch.get("extra_info")).get("tool_selection")
    chosen = [one for one in tools if not names or one["function"]["name"] in names]
    return chosen or None


def _section(config: Any, name: str) -> Any:
    return (config.get(name) if config is not None else None) or {}


def _response_length(config: Any) -> int | None:
    """The policy's limit, from the configuration of the trainer; None if it is not there."""
    limit = _section(config, "data").get("max_response_length")
    return None if limit is None else int(limit)


def _row(item: Any) -> Row:
    return row_of_dataset(item.non_tensor_batch)


def row_of_dataset(row: Mapping[str, Any]) -> Row:
    """A row of verl's datasets; `ground_truth` is in `reward_model`."""
    columns = dict(row)
    judged = row_of(columns.get("reward_model"))
    if "ground_truth" in judged:
        columns["ground_truth"] = judged["ground_truth"]
    return row_of_verl(columns.pop("extra_info", None), **columns)


def _as_tensor(rows: Sequence[Sequence[float]], responses: Any) -> torch.Tensor:
    import torch

    placed = left_aligned(rows, responses.shape[1])
    return torch.tensor(placed, dtype=torch.float32, device=responses.device)


def _of_config(config: Any) -> Mapping[str, Any]:
    return dict(_section(_section(config, "reward"), "reward_kwargs"))


def _is_colocated(config: Any) -> bool:
    model = _section(_section(config, "reward"), "reward_model")
    return bool(model.get("enable")) and not model.get("enable_resource_pool")


# Arguments that verl adds when it serves a reward model itself.
_OF_VERL = ("reward_router_address", "reward_model_tokenizer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    prompt_key: str = "prompt",
    **settings: Any,
) -> dict[str, float]:
    """`{"score": reward, ...}` of one response, with the reward components.

    verl passes no prompt: it is read from `extra_info[prompt_key]`, else from the conversation that
    agent loops add to `extra_info`. A response of several turns comes as one text with the results
    of tools in it, which only AlarmRewardManager tells apart. `reward_kwargs` may contain
    `prompt_key` and any of Settings; `fields` may name `ground_truth` (the default of the field
    `reference`), `data_source` and the keys of `extra_info`.
    """
    source = get_reward_source(DEFAULTS, _own(settings))
    samples = [_sample(solution_str, extra_info, prompt_key)]
    rows = [row_of_verl(extra_info, ground_truth=ground_truth, data_source=data_source)]
    rewards = await source.arewards(with_rows(samples, rows, source.settings))
    return _scored(rewards, source)


def compute_score_blocking(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    prompt_key: str = "prompt",
    **settings: Any,
) -> dict[str, float]:
    """As `compute_score`, for managers without asyncio (verl up to 0.7.0, `remote`)."""
    source = get_reward_source(DEFAULTS, _own(settings))
    samples = [_sample(solution_str, extra_info, prompt_key)]
    rows = [row_of_verl(extra_info, ground_truth=ground_truth, data_source=data_source)]
    return _scored(source.rewards(with_rows(samples, rows, source.settings)), source)


def _warn_of_turns(extra_info: Mapping[str, Any]) -> None:
    """Warn once that the text of several turns has what the policy did not write."""
    if int(extra_info.get("num_turns") or _ONE_REPLY) > _ONE_REPLY:
        _warn_once(_TURNS_AS_TEXT)


@cache
def _warn_once(message: str) -> None:
    LOG.warning(message)


def _scored(rewards: list[Reward], source: RewardSource) -> dict[str, float]:
    (score,) = numbers(rewards, source.settings.on_failure)
    parts = components(rewards[0], source.aspect_names.update(rewards))
    return {"score": score, **{f"alarm_{name}": value for name, value in parts.items()}}


def _sample(solution: str, extra_info: Mapping[str, Any] | None, key: str) -> Sample:
    extra = extra_info or {}
    _warn_of_turns(extra)
    return Sample(prompt=_prompt(extra, key), completion=solution)


def _prompt(extra_info: Mapping[str, Any], key: str) -> Text:
    if extra_info.get(key) is None and extra_info.get("raw_prompt") is not None:
        key = "raw_prompt"
    if extra_info.get(key) is None:
        raise ValueError(
            f"verl passes no prompt to compute_score: put it into the dataset's extra_info[{key!r}]"
            f" (it has {sorted(extra_info)}), name another key by reward_kwargs.prompt_key, "
            "or use AlarmRewardManager, which receives the conversation"
        )
    return prompt_of(extra_info[key])


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OF_VERL}
