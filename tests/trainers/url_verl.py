"""Runs verl's client of a discriminative reward model, with the URL's address as router."""

import asyncio
import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from policy import ANSWERS, QUESTION, policy_tokenizer
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker


class Item:
    """One sample in the format of verl's workers."""

    def __init__(self, ids: list[int]) -> None:
        prompt = np.array([{"role": "user", "content": QUESTION}], dtype=object)
        self.non_tensor_batch = {"raw_prompt": prompt}
        self.batch = {
            "responses": torch.tensor(ids),
            "attention_mask": torch.ones(len(ids), dtype=torch.long),
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: Any) -> "Item":
        return self


async def main(address: str, engine: str, num_rounds: str = "1") -> None:
    tokenizer = policy_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    worker = RewardLoopWorker.__new__(RewardLoopWorker)
    worker.reward_router_address = address
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    model = SimpleNamespace(rollout=SimpleNamespace(name=engine), model_path="/weights/rm")
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model))
    items = [
        Item(tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False))
        for answer in ANSWERS * int(num_rounds)
    ]
    found = await asyncio.gather(*map(worker.compute_score_disrm, items))
    print(json.dumps([one["reward_score"] for one in found]))


asyncio.run(main(*sys.argv[1:]))
