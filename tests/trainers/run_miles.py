"""Runs miles' dispatch of rewards: our function by dotted name, and remote_rm by URL."""

import asyncio
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

from miles.rollout.rm_hub import async_rm, batched_async_rm
from miles.utils.types import Sample
from texts_of_policies import ANSWERS, PROMPT

PATH = "alarm_client.trainers.miles.custom_rm"
URL = f"{os.environ['ALARM_URL']}/compat/miles/mini"


def args(**given: object) -> Namespace:
    plain = {"custom_rm_path": None, "rm_type": None, "rm_url": None, "reward_key": None}
    return Namespace(**plain | {"multi_lora": False, "multi_lora_n_adapters": 0} | given)


def samples() -> list[Sample]:
    chat = [{"role": "user", "content": PROMPT}]
    return [Sample(prompt=chat, response=f"{answer}<|im_end|>") for answer in ANSWERS]


async def main() -> dict[str, object]:
    ours, keyed = args(custom_rm_path=PATH), args(custom_rm_path=PATH, reward_key="score")
    by_url = await batched_async_rm(args(rm_type="remote_rm", rm_url=URL), samples())
    group = samples()
    await batched_async_rm(keyed, group, inplace_set_reward_field=True)
    return {
        "url": by_url,
        "single": [await async_rm(ours, one) for one in samples()],
        "batch": await batched_async_rm(ours, samples()),
        "keyed": [one.get_reward_value(keyed) for one in group],
    }


Path(sys.argv[1]).write_text(json.dumps(asyncio.run(main())))
