"""Computes ms-swift's rewards and advantages for groups with a failed sample."""

import json
import sys
from pathlib import Path

import torch
from swift.rewards import orms
from swift.rl_core.advantage import compute_advantages
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file
from texts_of_policies import PROMPT

from alarm_client.trainers.__main__ import FILES

import_external_file(str(FILES / "alarm_ms_swift.py"))
functions = [orms["alarm"](args=None), lambda completions, **_: [1.0] * len(completions)]


def group(answers: list[str], prompt_id: str) -> list[GRPOSample]:
    """Return the completions of one prompt."""
    return [
        GRPOSample(
            messages=[
                {"role": "user", "content": PROMPT},
                {"role": "assistant", "content": answer},
            ],
            prompt_id=prompt_id,
        )
        for answer in answers
    ]


samples = [*group(["5", "fail", "7", "6"], "a"), *group(["-5", "fail", "-7", "-6"], "b")]
rewards = compute_rewards_per_func(samples, functions, [None, None], torch.device("cpu"))
advantages, _ = compute_advantages(rewards, torch.ones(2), num_generations=4)
Path(sys.argv[1]).write_text(
    json.dumps({"rewards": rewards.tolist(), "advantages": advantages.tolist()})
)
