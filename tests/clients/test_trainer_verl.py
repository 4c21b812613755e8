"""The calls of verl 0.9.1 (and of managers up to 0.7.0), as its source makes them."""

import asyncio
import functools
import inspect
import math
import pickle

import client_tokenizers
import numpy as np
import pytest
import torch

from alarm_client.errors import SampleFailed
from alarm_client.trainers.verl import AlarmRewardManager, compute_score, compute_score_blocking

CALL = {"data_source": "d", "solution_str": "four", "ground_truth": "g"}
RAW_PROMPT = np.array([{"role": "user", "content": "Q"}], dtype=object)
TOKENIZER = client_tokenizers.byte_level()


class DataProto:
    """The part of verl's DataProto that a manager sees: rows by index and slice, as batches."""

    def __init__(self, batch, non_tensor_batch):
        self.batch, self.non_tensor_batch = batch, non_tensor_batch

    def __len__(self):
        return len(self.batch["responses"])

    def __getitem__(self, index):
        return DataProto(
            {name: tensor[index] for name, tensor in self.batch.items()},
            {name: values[index] for name, values in self.non_tensor_batch.items()},
        )


def rollouts(*completions):
    """Prompts of 3 tokens and responses, padded on the left and on the right, as verl does."""
    ids = [[*TOKENIZER(text).input_ids, TOKENIZER.eos_token_id] for text in completions]
    width = max(map(len, ids))
    responses = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    mask = torch.tensor([[0, 1, 1] + [1] * len(row) + [0] * (width - len(row)) for row in ids])
    prompts = torch.tensor([[0, *TOKENIZER("Hi").input_ids[:2]]] * len(ids))
    raw = np.empty(len(ids), dtype=object)
    raw[:] = [RAW_PROMPT] * len(ids)
    batch = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    return DataProto(batch, {"raw_prompt": raw}), [len(row) for row in ids]


async def test_verl_score_has_reward_components(rewards):
    found = await compute_score(**CALL, extra_info={"prompt": "Q", "num_turns": None})
    assert found["score"] == 4.0
    assert (found["alarm_fluency"], found["alarm_admitted"]) == (2.0, 1.0)
    fields = {"reference": "g"}
    assert rewards.samples == [{"prompt": "Q", "completion": "four", "fields": fields}]


async def test_verl_reward_kwargs_are_merged(rewards):
    merged = functools.partial(compute_score, prompt_key="question", recipe="mine")
    assert inspect.iscoroutinefunction(merged)
    found = await merged(**CALL, extra_info={"question": "Q"})
    assert found["score"] == 4.0
    assert rewards.bodies[0]["recipe"] == "mine"


async def test_verl_samples_have_the_same_keys(rewards):
    rewards.bad = {"bad"}
    policy = {"on_failure": 0, "aspect_names": "depth,fluency"}
    rows = [
        await compute_score("d", text, "g", {"prompt": "Q"}, **policy) for text in ("four", "bad")
    ]
    assert rows[0].keys() == rows[1].keys()
    assert [row["score"] for row in rows] == [4.0, 0.0]
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    assert all(column.shape == (2,) for column in columns.values())


async def test_verl_call_without_prompt_says_where_to_put_it(rewards):
    with pytest.raises(ValueError, match=r"extra_info\['prompt'\] \(it has \['index'\]\)"):
        await compute_score(**CALL, extra_info={"index": 0})


async def test_verl_failure_is_raised(rewards):
    rewards.bad = {"four"}
    with pytest.raises(SampleFailed):
        await compute_score(**CALL, extra_info={"prompt": "Q"})


def test_verl_compute_score_blocking_returns_the_score(rewards):
    assert not inspect.iscoroutinefunction(compute_score_blocking)
    found = compute_score_blocking(
        **CALL, extra_info={"prompt": "Q"}, reward_router_address=None, reward_model_tokenizer=None
    )
    assert found["score"] == 4.0


async def test_verl_manager_sends_conversation_and_sampled_ids(rewards):
    manager = AlarmRewardManager(config={}, tokenizer=TOKENIZER, compute_score=None)
    data, (length,) = rollouts("The café")
    found = await manager.run_single(data)
    assert found["reward_score"] == 8.0
    assert found["reward_extra_info"]["alarm_fluency"] == 4.0
    assert rewards.samples[0]["prompt"] == [{"role": "user", "content": "Q"}]
    assert len(rewards.samples[0]["token_offsets"]) == length


async def test_verl_trajectory_is_scored_by_its_last_sequence(rewards):
    manager = AlarmRewardManager(config=None, tokenizer=TOKENIZER)
    data, _ = rollouts("first", "the last")
    assert (await manager.run_single(data))["reward_score"] == 8.0
    assert len(rewards.samples) == 1


def test_verl_070_batch_gets_token_reward_tensor(rewards):
    manager = AlarmRewardManager(
        tokenizer=TOKENIZER, num_examine=0, compute_score=None, reward_fn_key="data_source"
    )
    data, lengths = rollouts("The", "The café's owner")
    found = manager(data, return_dict=True)
    tensor = found["reward_tensor"]
    assert tensor.shape == data.batch["responses"].shape
    assert tensor.dtype == torch.float32
    assert tensor.sum(dim=1).tolist() == [3.0, 16.0]
    for row, length, total in zip(tensor.tolist(), lengths, (3.0, 16.0), strict=True):
        assert row[:length] == [1.0] * (length - 1) + [total - (length - 1)]
        assert not any(row[length:])
    assert found["reward_extra_info"]["alarm_fluency"] == [1.5, 8.0]
    assert manager(data).equal(tensor)


def colocated(**reward_kwargs):
    model = {"enable": True, "enable_resource_pool": False}
    return {"reward": {"reward_model": model, "reward_kwargs": reward_kwargs}}


def test_verl_dense_rewards_are_placed_by_assemble_rm_scores(rewards):
    manager = AlarmRewardManager(config=colocated(dense=True), tokenizer=TOKENIZER)
    data, lengths = rollouts("The", "The café's owner")
    scores = [
        asyncio.run(manager.run_single(data[index : index + 1]))["reward_score"]
        for index in range(2)
    ]
    assert [len(score) for score in scores] == lengths
    laid = AlarmRewardManager.assemble_rm_scores(data, scores)
    assert laid.sum(dim=1).tolist() == [3.0, 16.0]
    assert laid[0, lengths[0] - 1] == 3.0 - (lengths[0] - 1)


def test_verl_scalars_are_placed_on_the_last_token(rewards):
    data, lengths = rollouts("The", "The café's owner")
    laid = AlarmRewardManager.assemble_rm_scores(data, [1.5, 2.5])
    assert [laid[row, length - 1].item() for row, length in enumerate(lengths)] == [1.5, 2.5]
    assert laid.sum().item() == 4.0


def test_verl_dense_without_colocated_model_is_refused(rewards):
    streaming = {"reward": {"reward_model": {"enable": False}, "reward_kwargs": {"dense": True}}}
    with pytest.raises(ValueError, match="one float per trajectory"):
        AlarmRewardManager(config=streaming, tokenizer=TOKENIZER)


def test_verl_prompt_without_conversation_is_decoded(rewards):
    data, _ = rollouts("The")
    data.non_tensor_batch = {}
    AlarmRewardManager(tokenizer=TOKENIZER)(data)
    assert rewards.samples[0]["prompt"] == TOKENIZER.decode(
        data.batch["prompts"][0, 1:], skip_special_tokens=True
    )


def test_verl_manager_is_picklable(rewards):
    manager = pickle.loads(pickle.dumps(AlarmRewardManager(tokenizer=TOKENIZER)))
    data, _ = rollouts("The")
    assert manager(data).sum() == 3.0
    manager.source.close()


def test_verl_components_not_computed_are_nan(rewards):
    found = compute_score_blocking(**CALL, extra_info={"prompt": "Q"})
    assert math.isnan(found["alarm_depth"])
    assert found["alarm_failed"] == 0.0
