"""slime's dispatch of rewards by function and by URL, and its GAE over our token rewards."""

import asyncio
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import torch
from policies import tokenizer
from slime.rollout.rm_hub import async_rm, batched_async_rm
from slime.utils.misc import load_function
from slime.utils.types import Sample
from texts_of_policies import ANSWERS, PROMPT

MODULE = "alarm_client.trainers.slime"
URL = f"{os.environ['ALARM_URL']}/compat/slime/mini"
TOKENS = tokenizer()
CHAT = [{"role": "user", "content": PROMPT}]


def args(**given: object) -> Namespace:
    plain = {"custom_rm_path": None, "rm_type": None, "rm_url": None, "reward_key": None}
    return Namespace(**plain | given)


def samples() -> list[Sample]:
    prompt_ids = TOKENS.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    found = []
    for index, answer in enumerate(ANSWERS):
        ids = [*TOKENS(answer).input_ids, TOKENS.eos_token_id]
        found.append(
            Sample(
                index=index,
                group_index=0,
                prompt=CHAT,
                response=f"{answer}<|im_end|>",
                tokens=[*prompt_ids, *ids],
                response_length=len(ids),
                label="Jane Austen",
            )
        )
    return found


async def dense() -> dict[str, object]:
    """Token rewards through the three hooks, as slime's rollout and its loss call them."""
    TOKENS.save_pretrained("policy")
    given = args(
        custom_rm_path=f"{MODULE}.dense_rm",
        hf_checkpoint="policy",
        kl_coef=0.0,
        gamma=1.0,
        lambd=1.0,
    )
    group = samples()
    for one, reward in zip(group, await batched_async_rm(given, group), strict=True):
        one.reward = reward
    raw, rows = load_function(f"{MODULE}.post_process_rewards")(given, group)
    rollout = {"rewards": rows, "kl": [torch.zeros_like(row) for row in rows]}
    load_function(f"{MODULE}.token_level_advantages")(given, rollout)
    return {
        "raw": raw,
        "sums": [float(row.sum()) for row in rows],
        "lengths": [len(row) for row in rows],
        "response_lengths": [one.response_length for one in group],
        "first_returns": [float(row[0]) for row in rollout["returns"]],
    }


async def main() -> dict[str, object]:
    ours = args(custom_rm_path=f"{MODULE}.custom_rm")
    keyed = args(custom_rm_path=f"{MODULE}.custom_rm", reward_key="score")
    by_url = args(rm_type="remote_rm", rm_url=URL)
    return {
        "url": await batched_async_rm(by_url, samples()),
        "single": [await async_rm(ours, one) for one in samples()],
        "group": await batched_async_rm(ours, samples()),
        "keyed": [reward["score"] for reward in await batched_async_rm(keyed, samples())],
        "dense": await dense(),
    }


Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
