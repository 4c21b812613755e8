"""Runs EasyR1's AutoRewardManager with the packaged file, on a batch in its trainer's format."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from policies import tokenizer
from texts_of_policies import ANSWERS, PROMPT
from verl.protocol import DataProto
from verl.workers.reward.config import RewardConfig
from verl.workers.reward.function import AutoRewardManager

from alarm_client.trainers.__main__ import FILES

TOKENS = tokenizer()
ids = [[*TOKENS(answer).input_ids, TOKENS.eos_token_id] for answer in ANSWERS]
width = max(map(len, ids))
truth = {"prompt": PROMPT, "reference": "Jane Austen"}
batch = DataProto.from_dict(
    tensors={
        "responses": torch.tensor(
            [row + [TOKENS.pad_token_id] * (width - len(row)) for row in ids]
        ),
        "response_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
    },
    non_tensors={"ground_truth": np.array([truth, json.dumps(truth)], dtype=object)},
)


def rewards(**given: object) -> dict[str, object]:
    config = RewardConfig(reward_function=f"{FILES / 'alarm_easyr1.py'}:compute_score", **given)
    config.post_init()
    tensor, metrics = AutoRewardManager(config, TOKENS).compute_reward(batch)
    last = [row[len(given) - 1] for row, given in zip(tensor.tolist(), ids, strict=True)]
    return {"rewards": last, "sums": tensor.sum(1).tolist(), "metrics": metrics}


found = {
    "plain": rewards(),
    "with_ends": rewards(skip_special_tokens=False, reward_function_kwargs={"recipe": "mini"}),
}
Path(sys.argv[1]).write_text(json.dumps(found))
