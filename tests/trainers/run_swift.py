"""ms-swift's reward computation over its own samples, with the shipped plugin imported by path."""

import json
import sys
from pathlib import Path

import torch
from swift.rewards import orms
from swift.rl_core.data import GRPOSample
from swift.rl_core.grpo_algorithm import compute_rewards_per_func
from swift.utils import import_external_file
from texts_of_policies import ANSWERS, PROMPT

from alarm_client.trainers.__main__ import FILES

import_external_file(str(FILES / "alarm_ms_swift.py"))
functions = [orms[name](args=None) for name in ("alarm", "alarm_factuality")]
samples = [
    GRPOSample(
        messages=[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]
    )
    for answer in ANSWERS
]
tables = [
    compute_rewards_per_func(samples, functions, [None, None], torch.device("cpu"))
    for _ in range(2)  # a new event loop each time
]
Path(sys.argv[1]).write_text(
    json.dumps({"rewards": tables[0].tolist(), "again": tables[1].tolist()})
)
