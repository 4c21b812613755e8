"""verl's own managers with our function and our manager, in process and in its Ray workers."""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import numpy as np
import ray
import torch
import verl
from omegaconf import OmegaConf
from policies import tokenizer
from tensordict import TensorDict
from texts_of_policies import ANSWERS, PROMPT
from verl import DataProto
from verl.experimental.reward_loop.reward_loop import RewardLoopManager
from verl.trainer.ppo.reward import load_reward_manager
from verl.workers.reward_manager.naive import NaiveRewardManager

from alarm_client.trainers.verl import compute_score_blocking

TOKENS = tokenizer()


def rollouts() -> DataProto:
    """Two rollouts, prompts padded on the left and responses on the right."""
    chat = [{"role": "user", "content": PROMPT}]
    prompt = TOKENS.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    ids = [[*TOKENS(answer).input_ids, TOKENS.eos_token_id] for answer in ANSWERS]
    width = max(map(len, ids))
    fill = [[0] * (width - len(row)) for row in ids]
    batch = TensorDict(
        {
            "prompts": torch.tensor([[0, *prompt]] * 2),
            "responses": torch.tensor([row + pad for row, pad in zip(ids, fill, strict=True)]),
            "attention_mask": torch.tensor(
                [
                    [0] + [1] * (len(prompt) + len(row)) + pad
                    for row, pad in zip(ids, fill, strict=True)
                ]
            ),
        },
        batch_size=2,
    )
    raw = np.empty(2, dtype=object)
    raw[:] = [chat, chat]
    return DataProto(
        batch,
        {
            "raw_prompt": raw,
            "data_source": np.array(["d", "d"]),
            "reward_model": np.array([{"ground_truth": ANSWERS[0]}] * 2, dtype=object),
            "extra_info": np.array([{"prompt": PROMPT} for _ in range(2)], dtype=object),
        },
    )


def config(name: str, source: str, **reward: object) -> OmegaConf:
    """verl's own reward configuration with what a user sets."""
    folder = Path(verl.__file__).parent / "trainer" / "config" / "reward"
    given = OmegaConf.create({"reward": OmegaConf.load(folder / "reward.yaml")})
    given.reward.reward_manager.name = name
    given.reward.reward_manager.source = source
    given.reward.reward_manager.module.path = "pkg://alarm_client.trainers.verl"
    return OmegaConf.merge(
        given,
        {
            "reward": reward,
            "actor_rollout_ref": {"model": {"path": os.getcwd(), "tokenizer_path": None}},
        },
    )


def each(manager: object, data: DataProto) -> list[dict[str, object]]:
    loop = asyncio.get_event_loop()
    return [loop.run_until_complete(manager.run_single(data[i : i + 1])) for i in range(2)]


def sizes_of_batches() -> tuple[float, float]:
    """The samples and the batches that the server's models have had."""
    answer = httpx.get(f"{os.environ['ALARM_URL']}/metrics").raise_for_status()
    lines = answer.text.splitlines()

    def total(name: str) -> float:
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    return total("alarm_batch_samples_sum"), total("alarm_batch_samples_count")


def at_once(manager: object, data: DataProto) -> tuple[list[float], float]:
    """The rewards of 16 calls for each sample, as verl's loop awaits them; samples a batch."""
    loop = asyncio.get_event_loop()
    before = sizes_of_batches()
    calls = [manager.run_single(data[i % 2 : i % 2 + 1]) for i in range(32)]
    rows = loop.run_until_complete(asyncio.wait_for(asyncio.gather(*calls), 120))
    samples, batches = (now - then for now, then in zip(sizes_of_batches(), before, strict=True))
    # What needs no device has no batches.
    return [row["reward_score"] for row in rows], samples / batches if batches else 0.0


FUNCTION = {"path": "pkg://alarm_client.trainers.verl", "name": "compute_score"}
asyncio.set_event_loop(asyncio.new_event_loop())
data = rollouts()
naive = load_reward_manager(config("naive", "register", custom_reward_function=FUNCTION), TOKENS)
ours = load_reward_manager(config("AlarmRewardManager", "importlib"), TOKENS)
dense_config = config(
    "AlarmRewardManager",
    "importlib",
    reward_model={"enable": True},
    reward_kwargs={"dense": True},
)
dense = load_reward_manager(dense_config, TOKENS)
scores = [row["reward_score"] for row in each(dense, data)]
legacy = NaiveRewardManager(TOKENS, num_examine=0, compute_score=compute_score_blocking)

naive_rows = each(naive, data)
together, samples_a_batch = at_once(naive, data)

TOKENS.save_pretrained(os.getcwd())
ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1")
ray_config = config("AlarmRewardManager", "importlib", num_workers=2)
by_ray = RewardLoopManager(ray_config).compute_rm_score(data)

Path(sys.argv[1]).write_text(
    json.dumps(
        {
            "naive": [row["reward_score"] for row in naive_rows],
            "naive_extra": naive_rows[0]["reward_extra_info"],
            "together": together,
            "samples_a_batch": samples_a_batch,
            "ours": [row["reward_score"] for row in each(ours, data)],
            "dense": type(dense).assemble_rm_scores(data, scores).tolist(),
            "legacy_naive": legacy(data).sum(dim=1).tolist(),
            "legacy_ours": ours(data, return_dict=True)["reward_tensor"].tolist(),
            "by_ray": by_ray.batch["rm_scores"].tolist(),
            "by_ray_keys": sorted(by_ray.meta_info["reward_extra_keys"]),
            "lengths": data.batch["attention_mask"][:, data.batch["prompts"].shape[1] :]
            .sum(dim=1)
            .tolist(),
        }
    )
)
ray.shutdown()
